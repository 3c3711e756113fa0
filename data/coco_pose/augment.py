"""Random affine, mirror and colour: photo, mask and joints side by side (paper, section 4)."""

import cv2
import numpy as np

from utils.affine import get_transform, kpt_affine, warp


def centred(height, width):
    """The whole photo, centred: center (x, y) in image pixels, scale (side / 200), 0 degrees."""
    return np.array([width / 2, height / 2]), max(height, width) / 200, 0.0


def jittered(height, width, ranges, rng, people=()):
    """A random center (image pixels), scale (side / 200) and rotation (degrees) within `ranges`.

    people: (P, K, 3) in the image frame, one of whom the center may be aimed at.
    """
    center, scale, _ = centred(height, width)
    scale *= rng.uniform(*ranges['scale'])
    if ranges['aim'] and len(people) and rng.random() < ranges['aim']:
        person = people[rng.integers(len(people))]
        points = person[person[:, 2] > 0, :2]
        # Not beyond where the square would leave the photo, or the photo the square.
        size, half = np.array([width, height]), 100 * scale
        least, most = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
        center = ((points.min(0) + points.max(0)) / 2).clip(least, most)
    center += rng.uniform(-ranges['shift'], ranges['shift'], 2) * scale
    return center, scale, rng.uniform(-ranges['rotation'], ranges['rotation'])


def warp_sample(photo, crowd, people, geometry, input_res, output_res):
    """Photo into the input frame, mask and people into the output frame.

    photo (H, W, 3) uint8; crowd (H, W) uint8, 1 in crowds, or None; people (P, K, 3) in the image
    frame. Returns photo_input (input_res, input_res, 3) uint8, mask (output_res, output_res)
    float32 with 0 in crowds and outside the photo, people (P, K, 3) in the output frame.
    """
    center, scale, rotation = geometry
    input_matrix, output_matrix = (
        get_transform(center, scale, (res, res), rotation)[:2] for res in (input_res, output_res)
    )
    photo_input = warp(photo, input_matrix, (input_res, input_res))
    usable = np.full(photo.shape[:2], 255, np.uint8) if crowd is None else 255 * (1 - crowd)
    mask = (warp(usable, output_matrix, (output_res, output_res)) > 127).astype(np.float32)
    people_output = people.copy()
    people_output[..., :2] = kpt_affine(people[..., :2], output_matrix)
    return photo_input, mask, people_output


def mirror(photo, mask, people, flip):
    """Left becomes right; flip[k] is what joint k becomes. Joints are in the mask's frame."""
    people = people[:, flip].copy()
    people[..., 0] = mask.shape[1] - people[..., 0]
    return cv2.flip(photo, 1), cv2.flip(mask, 1), people


def colour(photo, ranges, rng):
    """Random hue, saturation, brightness and contrast, in place, of a float32 RGB photo in [0, 1].

    hue turns by +-ranges['hue'] degrees, saturation is scaled, and each pixel is brightened and its
    distance from the mean of its channels stretched.
    """
    hue = rng.uniform(-ranges['hue'], ranges['hue'])
    saturation = rng.uniform(*ranges['saturation'])
    brightness = rng.uniform(-ranges['brightness'], ranges['brightness'])
    contrast = rng.uniform(*ranges['contrast'])
    cv2.cvtColor(photo, cv2.COLOR_RGB2HSV, dst=photo)
    # The conversion back takes a hue (0 to 360) past its upper end, but not a negative one.
    turn = np.array([[1, 0, 0, hue % 360], [0, saturation, 0, 0], [0, 0, 1, 0]], np.float32)
    cv2.transform(photo, turn, dst=photo)
    cv2.min(photo, (np.inf, 1, np.inf, 0), dst=photo)
    cv2.cvtColor(photo, cv2.COLOR_HSV2RGB, dst=photo)
    stretch = np.full((3, 4), (1 - contrast) / 3, np.float32)
    stretch[:, :3] += contrast * np.eye(3, dtype=np.float32)
    stretch[:, 3] = brightness
    cv2.transform(photo, stretch, dst=photo)
    return np.clip(photo, 0, 1, out=photo)
