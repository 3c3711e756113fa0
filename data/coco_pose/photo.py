"""A photo as an array."""

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils.errors import UserError
from utils.regions import MOST_PIXELS

ORIENTATION = 274  # the tag of EXIF
Image.MAX_IMAGE_PIXELS = None  # Pillow warns of fewer


def read_photo(path, size=(0, 0), upright=False):
    """A photo as (H, W, 3) uint8 RGB; grey, alpha and 16 bit are converted.

    size: the height and width that its annotations say, 0 for any. upright: turned as its EXIF tag
    says, and as viewers show it; otherwise the stored pixels, which are the frame of COCO's
    annotations. If only the other of the two has this size, it is what the annotations are of.
    Raises UserError where the photo is missing, broken, cut short, too large or of another size.
    """
    advice = 'convert it to JPEG or PNG, or choose another' if upright else 'download it again'
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'cannot read photo {path} ({error.strerror}): {advice}') from None
    start = pixels = 0
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        pixels = image.width * image.height
        start = image.fp.tell()
    # A decoder takes memory for all pixels that a file claims, however few it holds.
    if pixels > MOST_PIXELS:
        raise UserError(
            f'photo {path} claims {pixels:,} pixels: expected {MOST_PIXELS:,} at most; scale it '
            'down, or, if it is smaller, take it from its source again'
        )
    # It fills what is missing of a JPEG with grey without a word. Pillow has stopped where the
    # pixels start, behind a preview and its end marker.
    cut_short = data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9', start) < 0
    photo = decode(data, upright) if pixels and not cut_short else None
    if photo is not None and all(size) and photo.shape[:2] == tuple(size[::-1]) != tuple(size):
        photo = decode(data, not upright)
    if photo is None:
        problem = 'is cut short' if cut_short else 'cannot be decoded'
        raise UserError(f'photo {path} {problem} ({len(data)} bytes): {advice}')
    height, width = photo.shape[:2]
    expected = size[0] or height, size[1] or width
    if expected != (height, width):
        raise UserError(
            f'photo {path} is {width} x {height}, its annotation says {expected[1]} x '
            f'{expected[0]}: use the original photos'
        )
    return photo


def is_turned(file):
    """Whether a photo, a path or stream, says in EXIF that it is to be shown turned or mirrored."""
    with contextlib.suppress(Exception), Image.open(file) as image:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    return False


def decode(data, upright):
    """The pixels in the bytes of a photo, or None."""
    if upright and b'avif' in data[8:40] and is_turned(io.BytesIO(data)):  # OpenCV turns no AVIF
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    # Pillow's pixels of a JPEG are the same, but take twice the time.
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    with contextlib.suppress(cv2.error):
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
