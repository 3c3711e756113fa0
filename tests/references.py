"""The method done one image, joint and person at a time: what the tests and the benchmark compare.

Slow and plain on purpose, and independent of the program but for what is no subject here: affine
matrices, the order of joints, and the geometry that is drawn for a sample.
"""

import cv2
import numpy as np
import torch
from munkres import Munkres

from data.coco_pose import augment, ref
from utils.affine import get_transform, kpt_affine
from utils.group import COCO_ORDER

FLIP = list(ref.COCO.flip)
K = len(FLIP)


def sample(path, people, config, rng):
    """A training sample: read, warp, mask, mirror, targets, colour, as passes over whole arrays.

    The 20 leftmost pixels of the photo are a crowd. Returns image (input_res, input_res, 3), mask
    (R, R) and heatmaps (K, R, R).
    """
    settings, ranges = config['train'], config['augmentation']
    photo = cv2.imread(str(path))[:, :, ::-1]
    height, width = photo.shape[:2]
    center, scale, rotation = augment.jittered(height, width, ranges, rng)
    side, R = settings['input_res'], settings['output_res']
    matrices = [get_transform(center, scale, (res, res), rotation)[:2] for res in (side, R)]
    image = cv2.warpAffine(photo, matrices[0], (side, side)).astype(float) / 255
    mask = np.ones((height, width))
    mask[:, :20] = 0
    mask = cv2.warpAffine((mask * 255).astype(np.uint8), matrices[1], (R, R)) / 255 > 0.5
    people = people.copy()
    people[..., :2] = kpt_affine(people[..., :2], matrices[1])
    if rng.random() < ranges['mirror']:
        image, mask, people = image[:, ::-1], mask[:, ::-1], people[:, FLIP]
        people[..., 0] = R - people[..., 0]
    sigma = R / 64
    rows, cols = np.mgrid[:R, :R]
    heatmaps = np.zeros((K, R, R))
    for person in people:
        for k, (x, y, v) in enumerate(person):
            x, y = int(x), int(y)
            if v > 0 and 0 <= x < R and 0 <= y < R:
                far = (cols - x) ** 2 + (rows - y) ** 2
                heatmaps[k] = np.maximum(heatmaps[k], np.exp(-far / (2 * sigma**2)))
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = np.mod(hsv[:, :, 0] + rng.uniform(-72, 72), 360)
    hsv[:, :, 1] = np.clip(hsv[:, :, 1] * rng.uniform(0.5, 1.5), 0, 1)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) + rng.uniform(-0.3, 0.3)
    mean = image.mean(2, keepdims=True)
    image = np.clip((image - mean) * rng.uniform(0.5, 1.5) + mean, 0, 1)
    return image.astype(np.float32), mask, heatmaps.astype(np.float32)


def tag_losses(tags, keypoints):
    """push and pull of one image, with a loop over people and one over pairs of them.

    tags (K*R*R, D), keypoints (P, K, 2).
    """
    means, pulls = [], []
    for person in keypoints.tolist():
        joints = tags[[index for index, visible in person if visible]]  # (visible joints, D)
        if len(joints) > 0:
            mean = joints.mean(0)
            pulls.append(((joints - mean) ** 2).sum(1).mean())
            means.append(mean)
    pairs = [torch.exp(-((a - b) ** 2).sum()) for i, a in enumerate(means) for b in means[:i]]
    nothing = tags.new_zeros(())
    push = 0.5 * sum(pairs) / len(pairs) if pairs else nothing
    return push, sum(pulls) / len(pulls) if pulls else nothing


def merge(preds, scales):
    """Heatmaps (K, R, R) and tags (K, R, R, D) of the passes (2, C, h, w) of several scales."""
    preds = [pred.numpy() for pred in preds]
    R = preds[0].shape[2]
    det, tags = 0, []
    for pred, scale in zip(preds, scales, strict=True):
        mirrored = pred[1][:, :, ::-1]
        both = pred[0][:K] + mirrored[:K][FLIP]
        det = det + np.stack([cv2.resize(one, (R, R)) for one in both])
        if scale == 1:
            for one in (pred[0][K : 2 * K], mirrored[K : 2 * K][FLIP]):
                tags.append(np.stack([cv2.resize(plane, (R, R)) for plane in one]))
    return np.minimum(det / len(preds) / 2, 1), np.stack(tags, 3)


def group(det, tag, settings):
    """People as arrays (K, 3 + D) of x, y (whole pixels), value and tags, 0 where missing."""
    D = tag.shape[3]
    people, tags = {}, {}  # both by a person's first tag: joints, and the tags that have joined
    for k in COCO_ORDER:
        highest = det[k] == cv2.dilate(det[k], np.ones((3, 3)))
        rows, cols = np.nonzero(highest & (det[k] > settings['detection_val']))
        order = np.argsort(-det[k][rows, cols], kind='stable')[: settings['max_num_people']]
        found = [np.array([x, y, det[k, y, x], *tag[k, y, x]])
                 for y, x in zip(rows[order], cols[order], strict=True)]  # fmt: skip
        keys, joins = list(people), {}
        if keys and found:
            means = [np.mean(tags[key], 0) for key in keys]
            gaps = [[np.sqrt(np.mean((joint[3:] - mean) ** 2)) for mean in means]
                    for joint in found]  # fmt: skip
            spare = [1e10] * max(len(found) - len(keys), 0)
            cost = [[100 * np.round(gap) - joint[2] for gap in row] + spare
                    for joint, row in zip(found, gaps, strict=True)]  # fmt: skip
            for i, j in Munkres().compute(cost):
                if j < len(keys) and gaps[i][j] < settings['tag_val']:
                    joins[i] = keys[j]
        for i, joint in enumerate(found):
            key = joins.get(i, joint[3])
            if i in joins:
                tags[key].append(joint[3:])
            elif key in people or len(people) < settings['max_num_people']:
                tags[key] = [joint[3:]]
            else:
                continue
            people.setdefault(key, np.zeros((K, 3 + D)))[k] = joint
    return list(people.values())


def refine(det, tag, person):
    """The pixel and the value (K, 3) of every joint of a person, missing ones filled in."""
    mean = person[person[:, 2] > 0, 3:].mean(0)
    filled = person[:, :3].copy()
    filled[:, :2] = np.floor(filled[:, :2])
    for k in np.flatnonzero(person[:, 2] == 0):
        distance = np.sqrt(((tag[k] - mean) ** 2).sum(2))
        y, x = np.unravel_index(np.argmax(det[k] - np.round(distance)), distance.shape)
        filled[k] = x, y, max(det[k, y, x], 1e-3)
    return filled


def find_people(preds, scales, settings):
    """Everything after the network, in loops over joints, people and whole planes: (P, K, 3)."""
    det, tag = merge(preds, scales)
    return [refine(det, tag, person) for person in group(det, tag, settings)]
