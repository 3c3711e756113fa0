"""Grouping: from heatmaps and tags to people (paper, section 3.1; METHOD.md, section 8)."""

import numpy as np
import torch
import torch.nn.functional as F

from utils.assignment import assign

# The joints most often seen come first, so that a person starts from a reliable one.
COCO_ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
NOBODY = 1e10  # the cost of a peak that no person is left for


def adjust(pixels, det, last_row=None, subpixel=False):
    """Pixels (N, 4) int64 as (image, joint, y, x) -> points (N, 2) float32 in the output frame.

    A pixel's centre, moved by a quarter toward the larger neighbour in x and in y, or with subpixel
    to the top of the Gaussian through the three values, to regain part of what the heatmap's stride
    lost; heatmaps `det` are (B, K, H, W). last_row: the row at which the neighbour below is cut
    off, by default the heatmap's last.
    """
    B, K, H, W = det.shape
    last_row = H - 1 if last_row is None else last_row
    b, k, y, x = pixels.unbind(1)
    before = det[b, k, y, (x - 1).clamp(min=0)], det[b, k, (y - 1).clamp(min=0), x]
    after = det[b, k, y, (x + 1).clamp(max=W - 1)], det[b, k, (y + 1).clamp(max=last_row), x]
    before, after = torch.stack(before, 1), torch.stack(after, 1)  # (N, 2), in x and in y
    toward = (after > before).float() * 0.5 - 0.25
    if subpixel:
        # The logarithm of a Gaussian is a parabola.
        here = det[b, k, y, x, None]
        before, here, after = (v.float().clamp(min=1e-4).log() for v in (before, here, after))
        bend = (2 * here - before - after).clamp(min=1e-6)
        toward = ((after - before) / bend / 2).clamp(-0.5, 0.5)
    return torch.stack([x, y], 1) + 0.5 + toward


class HeatmapParser:
    """Finds the peaks of every joint's heatmap and groups them by their tags.

    detection_val: the heatmap value that a peak must exceed. tag_val: the distance of tags below
    which a peak joins a person. max_num_people: peaks per joint, and people per image.
    joint_order: joints in the order of grouping; by default COCO's for 17 joints, else as numbered.
    tie_break: who gets a peak whose distances to several people are equal once they are rounded:
    'solver', whom munkres 1.1.4 chooses, or 'value', the people whose joints are surest so far.
    subpixel: how peaks are placed, see `adjust`.
    """

    def __init__(self, detection_val=0.1, tag_val=1.0, max_num_people=30, joint_order=None,
                 tie_break='solver', subpixel=False):  # fmt: skip
        self.detection_val, self.tag_val = detection_val, tag_val
        self.max_num_people = max_num_people
        self.joint_order, self.tie_break, self.subpixel = joint_order, tie_break, subpixel

    def peaks(self, det):
        """Pixels (N, 4) as (image, joint, y, x): 3 x 3 maxima over the threshold, best per joint.

        Sorted by image, joint and falling value; at most max_num_people for each joint.
        """
        B, K, H, W = det.shape
        # Rows, then columns: on a CPU many times faster than a general pooling.
        padded = F.pad(det, (1, 1, 1, 1), value=-torch.inf)
        across = torch.maximum(padded[..., :-2], padded[..., 2:]).maximum(padded[..., 1:-1])
        highest = torch.maximum(across[:, :, :-2], across[:, :, 2:]).maximum(across[:, :, 1:-1])
        places = nonzero(((det == highest) & (det > self.detection_val)).flatten())
        pixels = torch.stack(torch.unravel_index(places, det.shape), 1)  # (N, 4)
        values = det[tuple(pixels.T)]
        pixels = pixels[values.sort(descending=True, stable=True).indices]
        joints, order = (pixels[:, 0] * K + pixels[:, 1]).sort(stable=True)
        first = torch.searchsorted(joints, torch.arange(B * K, device=det.device))
        rank = torch.arange(len(joints), device=det.device) - first[joints]
        return pixels[order[rank < self.max_num_people]]

    def match(self, joints, points, values, tags, num_parts):
        """Groups the peaks of one image into people (P, K, 3 + D): x, y, value, tags.

        joints (N,), points (N, 2), values (N,), tags (N, D): NumPy arrays of the N peaks.
        """
        D = tags.shape[1]
        detections = np.concatenate([points, values[:, None], tags], 1).astype(np.float32)
        people = np.zeros((self.max_num_people, num_parts, 3 + D), np.float32)
        tag_sum = np.zeros((self.max_num_people, D))  # over a person's joints so far
        count = np.zeros((self.max_num_people, 1))  # of these joints
        first_tag = np.zeros(self.max_num_people)
        P = 0
        order = self.joint_order
        if order is None:
            order = COCO_ORDER if num_parts == len(COCO_ORDER) else range(num_parts)
        for k in order:
            candidates = detections[joints == k]  # in falling value
            person_of = np.full(len(candidates), -1)
            if P > 0 and len(candidates) > 0:
                values = people[:P, :, 2]
                mean_values = values.sum(1) / (values != 0).sum(1)
                distance, cost = self.costs(candidates, tag_sum[:P] / count[:P], mean_values)
                rows, columns = assign(cost)
                joins = columns < P
                joins[joins] = distance[rows[joins], columns[joins]] < self.tag_val
                person_of[rows[joins]] = columns[joins]
            joined = person_of >= 0
            if joined.all():
                people[person_of, k] = candidates
                tag_sum[person_of] += candidates[:, 3:]
                count[person_of] += 1
                continue
            for candidate, p in zip(candidates, person_of.tolist(), strict=True):
                if p >= 0:
                    tag_sum[p] += candidate[3:]
                    count[p] += 1
                else:
                    # Two newcomers that agree in their first tag to the last bit are one person,
                    # and the later counts: the original's rule, which its published figures carry.
                    same = np.flatnonzero(first_tag[:P] == candidate[3])
                    p = same[0] if len(same) > 0 else P
                    if p == self.max_num_people:
                        continue
                    P = max(P, p + 1)
                    first_tag[p], tag_sum[p], count[p] = candidate[3], candidate[3:], 1
                people[p, k] = candidate
        return people[:P]

    def costs(self, candidates, mean_tags, mean_values):
        """Distances (N, P) of N peaks to P people, and the costs of the assignment.

        candidates (N, 3 + D); mean_tags (P, D) and mean_values (P,) over a person's joints so far.
        Where there are more peaks than people, the costs have columns for nobody.
        """
        gap = candidates[:, None, 3:] - mean_tags  # float64, which decides ties as the original
        distance = np.sqrt((gap**2).mean(2))
        # Rounding makes people of similar distance equal, so that the surer peak decides.
        cost = 100 * distance.round() - candidates[:, 2:3]
        if self.tie_break == 'value':
            cost -= 0.001 * candidates[:, 2:3] * mean_values
        N, P = cost.shape
        return distance, np.hstack([cost, np.full((N, max(N - P, 0)), NOBODY)])

    def parse(self, det, tag, adjust_points=True):
        """People of every image: a list of B arrays (P, K, 3 + D) float32 of x, y, value, tags.

        det (B, K, H, W) and tag (B, K, H, W, D), tensors on any device or arrays. x and y are in
        the output frame (whole pixels without adjust_points); value 0 marks a missing joint.
        """
        det, tag = torch.as_tensor(det), torch.as_tensor(tag)
        B, K, H, W = det.shape
        pixels = self.peaks(det)
        index = tuple(pixels.T)
        points = pixels[:, [3, 2]].float()
        if adjust_points:
            points = adjust(pixels, det, subpixel=self.subpixel)
        columns = [pixels[:, :2].float(), points, det[index].float()[:, None], tag[index].float()]
        found = torch.cat(columns, 1).cpu().numpy()  # the only figures that leave the device
        np.nan_to_num(found, copy=False)  # tags of a network that has diverged
        split = np.split(found, np.searchsorted(found[:, 0], np.arange(1, B)))
        return [self.match(f[:, 1], f[:, 2:4], f[:, 4], f[:, 5:], K) for f in split]


def nonzero(mask):
    """The places of what is true in a tensor (N,), rising, int64."""
    # On a CPU NumPy is many times as fast as PyTorch.
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.is_cpu else mask.nonzero()[:, 0]
