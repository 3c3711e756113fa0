"""Filling in the joints that grouping left out (paper, section 3.1; METHOD.md, section 8)."""

import numpy as np
import torch

from utils.group import adjust

CACHED = 2**18  # values of maps that are looked at together: about what a CPU's cache holds


def refine(det, tag, person, subpixel=False):
    """Fills in the joints that a person lacks, where heatmap and tag suit it best (paper, 3.1).

    det (K, H, W), tag (K, H, W, D), person (K, 3 + D) or several (P, K, 3 + D) as grouping returns
    them, x and y in the output frame. Returns them anew; a filled joint has its heatmap's value, at
    least 1e-3. Only the maps of missing joints are looked at. subpixel: see `group.adjust`.
    """
    det, tag = torch.as_tensor(det), torch.as_tensor(tag)
    K, H, W, D = tag.shape
    people = np.array(person, np.float32)
    if people.ndim == 2:
        return refine(det, tag, people[None], subpixel)[0]
    found = people[:, :, 2] > 0  # (P, K)
    missing, owner = np.nonzero((~found & found.any(1)[:, None]).T)  # (M,) each, joint by joint
    if len(owner) == 0:
        return people
    means = (people[:, :, 3:] * found[..., None]).sum(1) / found.sum(1).clip(1)[:, None]
    means = torch.from_numpy(means[owner]).to(det)  # (M, D)
    joints = torch.from_numpy(missing).to(det.device)
    best, together = [], max(1, CACHED // (H * W))
    planes = det.new_empty(2, together, H, W)
    for k, joint_means in enumerate(means.split(np.bincount(missing, minlength=K).tolist())):
        for mean in joint_means.split(together):
            squares, gap = planes[:, : len(mean)]
            squares.zero_()
            for d in range(D):
                torch.sub(tag[k, :, :, d], mean[:, d, None, None], out=gap)
                squares.addcmul_(gap, gap)
            suits = torch.sub(det[k], squares.sqrt_().round_(), out=gap)
            best.append(argmax(suits.flatten(1)))
    best = torch.cat(best)
    y, x = best // W, best % W
    pixels = torch.stack([torch.zeros_like(joints), joints, y, x], 1)
    # The original cuts the neighbour below off at row K - 1 instead of H - 1. It moves a filled
    # joint by at most half an output pixel, and the published figures were measured with it.
    points = adjust(pixels, det[None], None if subpixel else min(K, H) - 1, subpixel)
    values = det[joints, y, x][:, None]
    filled = torch.cat([points, values.clamp(min=1e-3), tag[joints, y, x]], 1)
    # Where the heatmap is not positive nothing speaks for the joint, and it stays missing.
    people[owner, missing] = torch.where(values > 0, filled, 0).float().cpu().numpy()
    return people


def argmax(rows):
    """The first place of the maximum of each row of a tensor (N, M): (N,) int64."""
    # On a CPU NumPy is many times as fast as PyTorch.
    return torch.from_numpy(rows.numpy().argmax(1)) if rows.is_cpu else rows.argmax(1)
