"""Regions of a photo, polygons or run lengths: checked, packed, and drawn as a mask."""

import re
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from pycocotools import mask as rle_mask

FAR = 1_000_000  # pixels; no coordinate is that large
MOST_PIXELS = 2**27  # of a photo: 134 million, which take up to a gigabyte while they are decoded
COMPRESSED = re.compile('([P-o]{0,6}[0-O])+')  # run lengths: numbers of up to 7 characters

Side = Annotated[int, Meta(ge=1, lt=FAR)]
Number = Annotated[float, Meta(gt=-FAR, lt=FAR)]
Outline = Annotated[list[Number], Meta(min_length=6)]  # of a polygon: x, y, x, y, ...


class RunLengths(msgspec.Struct):
    """As COCO writes a region: the lengths of runs of 0 and 1 in turn, column by column."""

    size: tuple[Side, Side]  # height, width
    counts: str | list[Annotated[int, Meta(ge=0, lt=2**31)]]


Region = RunLengths | list[Outline]


def pack(region, size):
    """A Region as compressed run lengths, which pycocotools draws.

    size: the photo's [height, width], filled in where they are 0. pycocotools checks nothing: it
    would show memory that it does not own, or take minutes. Raises ValueError.
    """
    if isinstance(region, list):
        if max(np.abs(np.subtract(xy, np.roll(xy, 2))).sum() for xy in region) > FAR:
            raise ValueError('segmentation: an outline is too long')
        ends = [max(1, *(int(max(xy[i::2])) + 1 for xy in region)) for i in (1, 0)]
        shape = [size[0] or ends[0], size[1] or ends[1]]
    else:
        size[:] = size[0] or region.size[0], size[1] or region.size[1]
        shape = list(region.size)
    pixels = shape[0] * shape[1]
    if pixels > MOST_PIXELS or isinstance(region, RunLengths) and shape != size:
        raise ValueError(f'segmentation: its size {shape} (height, width) is not that of its image')
    if isinstance(region, list):
        return rle_mask.merge(rle_mask.frPyObjects(region, *shape))
    runs = {'size': shape, 'counts': region.counts}
    if isinstance(region.counts, list):
        if sum(region.counts) == pixels:
            return rle_mask.frPyObjects(runs, *shape)
    elif COMPRESSED.fullmatch(region.counts):
        # Too many pixels are a ValueError; too few come back as more text, of stray memory.
        if rle_mask.encode(rle_mask.decode(runs))['counts'].decode() == region.counts:
            return runs
    raise ValueError(f'segmentation: its counts do not add up to {pixels} pixels')


def draw_mask(regions, height, width):
    """(H, W) uint8: 1 inside any of the regions.

    regions: what `pack` returns, or boxes (x, y, width, height).
    """
    mask = np.zeros((height, width), np.uint8)
    for region in regions:
        if isinstance(region, dict):
            part = rle_mask.decode(region)[:height, :width]
            mask[: part.shape[0], : part.shape[1]] |= part
        else:
            x, y, w, h = (round(value) for value in region.tolist())
            mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask
