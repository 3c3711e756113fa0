"""Masks (height, width) as COCO stores them: run lengths and polygons."""

import cv2
import numpy as np


def run_lengths(mask):
    """Uncompressed run lengths as in COCO: column by column, beginning with the zeros."""
    flat = np.r_[0, mask.ravel(order='F').astype(np.int8), 2]
    counts = np.diff(np.r_[0, np.flatnonzero(np.diff(flat))])
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def polygons(mask):
    """Outlines [[x, y, x, y, ...], ...] of a mask; holes are joined to them by a slit."""
    grown = np.pad(mask.astype(np.uint8).repeat(2, 0).repeat(2, 1), ((1, 2), (1, 2)))
    # Pixel c covers [c, c + 1): the corners of (half) pixels are traced, not their centres.
    grown = cv2.dilate(grown, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, tree = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [cv2.approxPolyDP(contour, 1.4, True)[:, 0] - 1 for contour in contours]
    outlines = []
    for index, outline in enumerate(contours):
        _, _, hole, parent = tree[0][index]
        if parent >= 0 or len(outline) < 3:
            continue
        while hole >= 0:
            inner = contours[hole]
            gaps = np.abs(outline[:, None] - inner).sum(2)
            i, j = np.unravel_index(gaps.argmin(), gaps.shape)
            outline = np.concatenate([outline[: i + 1], inner[j:], inner[: j + 1], outline[i:]])
            hole = tree[0][hole][0]
        outlines.append((outline / 2).ravel().tolist())
    return outlines
