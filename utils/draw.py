"""Skeletons on a photo: one colour per person."""

import colorsys

import cv2
import numpy as np


def person_colour(number):
    """A bright RGB colour; neighbours in number are far apart in hue."""
    hue = number * 0.618034 % 1  # the golden ratio never repeats and spreads evenly
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, 1))


def joint_colour(joint, count):
    """A bright RGB colour for one of `count` joints, in the order of the rainbow."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(joint / count, 0.85, 1))


def draw_people(photo, people, skeleton, scores=None, side=640):
    """A copy of the photo, enlarged to at least `side` pixels, with joints, limbs and scores.

    photo (H, W, 3) uint8 RGB; people (P, K, 3+) of x, y in its pixels and a value, 0 where missing;
    skeleton: pairs of joints.
    """
    zoom = max(1.0, side / max(photo.shape[:2]))
    canvas = cv2.resize(photo, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    width = max(1, round(max(canvas.shape[:2]) / 200))
    for number, person in enumerate(people):
        colour = person_colour(number)
        points = np.round(person[:, :2] * zoom).astype(int)
        seen = person[:, 2] > 0
        for a, b in skeleton:
            if seen[a] and seen[b]:
                cv2.line(canvas, points[a].tolist(), points[b].tolist(), colour, width, cv2.LINE_AA)
        for x, y in points[seen].tolist():
            cv2.circle(canvas, (x, y), width + 1, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(canvas, (x, y), width, colour, -1, cv2.LINE_AA)
        if scores is not None and seen.any():
            x, y = points[seen].min(0).tolist()
            label(canvas, f'{scores[number]:.2f}', (x, y), colour)
    return canvas


def label(canvas, text, corner, colour=(255, 255, 255), scale=1.0):
    """Writes text on a dark ground above `corner` (x, y), or just below the photo's edge."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, scale * max(canvas.shape[:2]) / 1400
    (w, h), _ = cv2.getTextSize(text, font, size, 1)
    x = min(max(corner[0], 0), canvas.shape[1] - w)
    y = max(corner[1], h + 4)
    cv2.rectangle(canvas, (x, y - h - 4), (x + w, y + 2), (0, 0, 0), -1)
    cv2.putText(canvas, text, (x, y - 2), font, size, colour, 1, cv2.LINE_AA)


def beside(pictures, titles):
    """Pictures of one size in a row, each with its title."""
    for picture, title in zip(pictures, titles, strict=True):
        label(picture, title, (0, 0))
    return np.concatenate(pictures, 1)
