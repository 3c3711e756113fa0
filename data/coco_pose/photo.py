"""A photo as an array, and the crowds in it as a mask."""

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as rle_mask

from utils.errors import UserError

MOST_PIXELS = 2**27  # of a photo: 134 million, which take up to a gigabyte while they are decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow would warn of half as many
SOI, EOI = b'\xff\xd8', b'\xff\xd9'  # how a JPEG starts and ends


def read_photo(path, size=(0, 0), upright=False):
    """A photo as (H, W, 3) uint8 RGB; grey, alpha and 16 bit are converted.

    size: the height and width that its annotations say, 0 for any. upright: turned as its EXIF tag
    says, and as viewers show it; otherwise the stored pixels, which are the frame of COCO's
    annotations. Raises UserError that names the photo where it is missing, broken, cut short, too
    large or of another size.
    """
    advice = 'convert it to JPEG or PNG, or choose another' if upright else 'download it again'
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'cannot read photo {path} ({error.strerror}): {advice}') from None
    pixels, whole = look_at_header(data)
    if pixels > MOST_PIXELS:
        raise UserError(
            f'photo {path} claims {pixels:,} pixels: expected {MOST_PIXELS:,} at most; scale it '
            'down, or, if it is smaller, take it from its source again'
        )
    photo = None
    if pixels and whole:
        # Pillow's JPEG pixels are the same, but take twice the time.
        flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        with contextlib.suppress(cv2.error):
            photo = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if photo is None:
        problem = 'cannot be decoded' if whole else 'is cut short'
        raise UserError(f'photo {path} {problem} ({len(data)} bytes): {advice}')
    height, width = photo.shape[:2]
    expected = size[0] or height, size[1] or width
    if expected != (height, width):
        raise UserError(
            f'photo {path} is {width} x {height}, its annotation says {expected[1]} x '
            f'{expected[0]}: use the original photos'
        )
    return photo


def look_at_header(data):
    """How many pixels an image file claims, 0 if it is none, and whether a JPEG has its end.

    A decoder takes memory for all pixels, however few the file holds, and fills what is missing of
    a JPEG with grey without a word.
    """
    is_jpeg = data.startswith(SOI)
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow stands where the pixels start: the end marker of a preview lies before.
            start = image.fp.tell() if is_jpeg else 0
            return image.width * image.height, not is_jpeg or data.rfind(EOI, start) >= 0
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, OverflowError, MemoryError):
        return 0, not is_jpeg or EOI in data


def crowd_mask(crowds, height, width):
    """(H, W) uint8: 1 inside any of the crowds, image frame.

    crowds: compressed run lengths as pycocotools takes them, or boxes (x, y, width, height).
    """
    mask = np.zeros((height, width), np.uint8)
    for crowd in crowds:
        if isinstance(crowd, dict):
            part = rle_mask.decode(crowd)[:height, :width]
            mask[: part.shape[0], : part.shape[1]] |= part
        else:
            x, y, w, h = (round(value) for value in crowd.tolist())
            mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask
