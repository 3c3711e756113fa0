"""Affine maps between the frames: image (the photo), input (the network's), output (the heatmaps).

A point is (x, y), continuous, pixel c covering [c, c + 1).
"""

import cv2
import numpy as np


def get_transform(center, scale, res, rot=0):
    """The 3 x 3 matrix from the image frame to a frame of `res` = (rows, cols).

    A square of side 200 * scale around `center` (image frame) fills the new frame, which is then
    turned by -rot degrees about its own centre.
    """
    rows, cols = res
    side = 200 * scale
    matrix = np.array(
        [
            [cols / side, 0, cols * (0.5 - center[0] / side)],
            [0, rows / side, rows * (0.5 - center[1] / side)],
            [0, 0, 1],
        ]
    )
    if rot != 0:
        cos, sin = np.cos(np.deg2rad(-rot)), np.sin(np.deg2rad(-rot))
        x, y = cols / 2, rows / 2
        turn = np.array(
            [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]]
        )
        matrix = turn @ matrix
    return matrix


def kpt_affine(points, matrix):
    """Moves points (..., 2) by a (2, 3) matrix; the shape stays."""
    points = np.asarray(points)
    return points @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix):
    """The (2, 3) inverse of a (2, 3) affine matrix."""
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def warp(array, matrix, res):
    """An array (H, W[, C]) in the frame of `res` = (rows, cols): bilinear, 0 outside the photo."""
    rows, cols = res
    return cv2.warpAffine(array, matrix, (cols, rows))
