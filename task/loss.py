"""The two losses of associative embedding, in plain tensor operations (paper, section 3)."""

import torch
from torch import nn


def _at_least_float32(values):
    """16 bit are too few for squares and exponentials; float64 stays, for gradient checks."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class HeatmapLoss(nn.Module):
    """Mean squared error of the heatmaps outside masked regions, per image."""

    def forward(self, pred, gt, masks):
        """pred, gt (B, K, H, W), masks (B, H, W) of 0 or 1 -> (B,): mean over K, H and W."""
        error = (_at_least_float32(pred) - gt) ** 2 * masks[:, None]
        return error.mean(dim=(1, 2, 3))


class AELoss(nn.Module):
    """Pulls the tags of one person together and pushes the mean tags of people apart, per image."""

    def forward(self, tags, keypoints):
        """Both terms for every image; exact zeros where there is nobody to pull or no pair to push.

        tags (B, K*H*W) or (B, K*H*W, D): the tag maps, flattened. keypoints (B, P, K, 2) int64:
        index into the flattened maps, and 1 where the joint is to be seen.
        Returns push (B,), pull (B,).
        """
        B, P, K, _ = keypoints.shape
        index, visible = keypoints.unbind(-1)  # (B, P, K) each
        tags = _at_least_float32(tags.reshape(B, tags.shape[1], -1))  # (B, K*H*W, D)
        D = tags.shape[2]
        index = index.flatten(1)[:, :, None].expand(-1, -1, D)  # (B, P*K, D)
        joint_tags = tags.gather(1, index).view(B, P, K, D)

        visible = visible.to(tags.dtype)
        present = visible.any(2).to(tags.dtype)  # (B, P)
        joints = visible.sum(2).clamp(min=1)  # (B, P)
        people = present.sum(1)  # (B,)
        means = (joint_tags * visible[..., None]).sum(2) / joints[..., None]  # (B, P, D)

        distance = ((joint_tags - means[:, :, None]) ** 2).sum(3)  # (B, P, K)
        spread = (distance * visible).sum(2) / joints  # (B, P)
        pull = spread.sum(1) / people.clamp(min=1)

        gap = ((means[:, :, None] - means[:, None]) ** 2).sum(3)  # (B, P, P)
        # Each unordered pair once: the mean over pairs is over n (n - 1) / 2 of them.
        pair = (present[:, :, None] * present[:, None]).triu(diagonal=1)
        pairs = people * (people - 1) / 2
        push = 0.5 * (torch.exp(-gap) * pair).sum((1, 2)) / pairs.clamp(min=1)
        return push, pull
