"""From a photo to the network's inputs at several scales, and from its outputs to merged maps."""

from math import gcd

import numpy as np
import torch
import torch.nn.functional as F

from utils.affine import get_transform, invert, kpt_affine
from utils.device import one_thread

DIVERGED = 10  # a heatmap, trained toward 1, that exceeds this is noise


def as_rgb(img):
    """A photo (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), 8 or 16 bit, as (H, W, 3) uint8 RGB."""
    img = np.asarray(img)
    if img.dtype == np.uint16:
        img = (img >> 8).astype(np.uint8)
    if img.ndim == 2:
        img = img[..., None]
    if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] not in (1, 3, 4) or 0 in img.shape:
        raise ValueError(
            'a photo is an array (height, width, 3) of uint8 RGB; grey, alpha and 16 bit work too; '
            f'found {img.dtype} {img.shape}'
        )
    return np.repeat(img, 3, axis=2) if img.shape[2] == 1 else np.ascontiguousarray(img[..., :3])


def input_frames(height, width, config, scales):
    """For every scale the (rows, cols) of the network's input, and the (2, 3) matrix into it.

    The whole photo lies centred in a square; with test.square off the black margins are trimmed,
    by the same share at every scale so that the outputs still cover one another.
    """
    sides = [int(scale * config['train']['input_res'] + 63) // 64 for scale in scales]  # of 64 px
    share = np.ones(2)
    if not config['test']['square']:
        steps = gcd(*sides)
        share = np.ceil(np.array([height, width]) / max(height, width) * steps) / steps
    frames = []
    for side in sides:
        res = np.round(64 * side * share).astype(int)
        center, scale = (width / 2, height / 2), max(height, width) / 200
        matrix = get_transform(center, scale, (64 * side, 64 * side))[:2]
        matrix[:, 2] -= (64 * side - res[::-1]) / 2
        frames.append(((int(res[0]), int(res[1])), matrix))
    return frames


def merge(preds, scales, num_parts, flip):
    """Heatmaps and tags of one photo from the passes over all scales (METHOD.md, section 9).

    preds: per scale (D, C, H, W), the last stack's output for the photo and, with D = 2, for its
    mirror image. Returns det (K, H, W), the mean over passes and scales, tag (K, H, W, D), the
    passes at the scale nearest 1, both at the size of the first scale kept, and that scale's
    number. Scales that have diverged are left out; where all have, the maps are 0.
    """
    K = num_parts
    summed = []
    for pred in preds:
        det = pred[0, :K].clone()
        for mirrored in pred[1:, :K]:
            det += unmirror(mirrored, flip)
        summed.append(det)
    kept = [i for i, det in enumerate(summed) if bool(det.amax() <= DIVERGED)]  # NaN is left out
    if not kept:
        D, _, H, W = preds[0].shape
        return preds[0].new_zeros((K, H, W)), preds[0].new_zeros((K, H, W, D)), 0
    first, *others = kept
    det, size = summed[first], summed[first].shape[1:]
    for i in others:
        det += resize(summed[i][None], size)[0]
    det.div_(len(preds[0]) * len(kept)).clamp_(max=1)
    nearest = min(kept, key=lambda i: abs(scales[i] - 1))
    tags = preds[nearest][:, K : 2 * K]
    tags = torch.cat([tags[:1], unmirror(tags[1:], flip)])
    return det, resize(tags, size).permute(1, 2, 3, 0), first


def unmirror(maps, flip):
    """Maps (..., K, h, w) of a mirror image as those of the photo itself."""
    return maps[..., flip, :, :].flip(-1)


def resize(maps, size):
    """Maps (N, K, h, w) at another size, bilinear."""
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode='bilinear')


@one_thread()
def photo_maps(preds, frames, size, scales, joints, settings):
    """Heatmaps, tags and transform of one photo from its network outputs.

    preds: see `merge`. frames: see `input_frames`. size: the photo's (height, width). settings: the
    config's 'test'. Returns det (K, H, W), -inf beyond the photo where test.margins is off, tag
    (K, H, W, D), and the (2, 3) matrix from their frame to image pixels.
    """
    det, tag, first = merge(preds, scales, len(joints.names), list(joints.flip))
    if settings['shuffle_tags']:
        places = torch.randperm(tag.shape[1] * tag.shape[2], generator=torch.Generator())
        tag = tag.flatten(1, 2)[:, places.to(tag.device)].view_as(tag)
    (_, width), matrix = frames[first]
    matrix = matrix * (det.shape[2] / width)  # into the output frame
    if not settings['margins']:
        left, top = np.floor(kpt_affine([0, 0], matrix)).astype(int)
        right, bottom = np.ceil(kpt_affine([size[1], size[0]], matrix)).astype(int)
        outside = torch.ones_like(det[0], dtype=torch.bool)
        outside[max(top, 0) : bottom, max(left, 0) : right] = False
        det = det.masked_fill(outside, -torch.inf)
    return det, tag, invert(matrix)
