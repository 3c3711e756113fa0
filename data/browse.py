"""Sheets of training samples as the losses see them: look at these first when a loss looks wrong.

python -m data.browse -t pose                             samples/sheet-01.jpg, ...
python -m data.browse -t quickstart -n 32 --out look/     more of them, elsewhere
python -m data.browse -t pose --set train.augment=False   any config, as for train.py

Each sample is a pair of pictures. Left: the network's input with the joints at the pixels whose
tags are trained, a colour per person; what the mask hides from the heatmap loss has red stripes.
Right: the heatmaps over the darkened input, a colour per joint. They are the first samples of a
training with this config, in its order.
"""

import copy
import importlib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from utils.errors import exit_code  # isort: skip  # which says where OpenCV cannot be loaded
import cv2
import numpy as np

from data.coco_pose import ref
from utils.config import apply_settings, check_config, load_task
from utils.draw import GAP, GROUND, bright_colour, draw_people, in_grid, label, save_picture

SIDE = 480  # pixels of a picture
ACROSS, DOWN = 2, 4  # samples on a sheet
STRIPE = 8  # pixels
RED = np.array([255, 0, 0])


def decode(keypoints, output_res, stride):
    """People (P, K, 3) in the input frame from what KeypointsRef made of them.

    keypoints (max_num_people, K, 2): places in the flattened maps, and 1 where used. A joint stands
    in the middle of its output pixel; value 1, or 0 where missing.
    """
    P, K, _ = keypoints.shape
    owner, slot = keypoints[..., 1].nonzero()
    joint, y, x = np.unravel_index(keypoints[owner, slot, 0], (K, output_res, output_res))
    people = np.zeros((P, K, 3))
    people[owner, joint] = np.stack([(x + 0.5) * stride, (y + 0.5) * stride, np.ones(len(x))], 1)
    return people[keypoints[..., 1].any(1)]


def draw_sample(sample, skeleton):
    """The pair of pictures (SIDE, 2 * SIDE, 3) uint8 RGB of one sample, a dict of arrays."""
    K, R, _ = sample['heatmaps'].shape
    photo = cv2.resize((255 * sample['imgs']).round().astype(np.uint8), (SIDE, SIDE))
    people = decode(sample['keypoints'], R, SIDE / R)
    mask = cv2.resize(sample['masks'], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    stripes = 0.2 + 0.3 * (np.indices(mask.shape).sum(0) // STRIPE % 2)
    share = np.where(mask > 0, 0, stripes)[..., None]
    tinted = (photo * (1 - share) + RED * share).astype(np.uint8)
    seen = draw_people(tinted, people, skeleton, side=SIDE)

    maps = cv2.resize(sample['heatmaps'].transpose(1, 2, 0), (SIDE, SIDE))
    # Each pixel has the colour of the joint whose heatmap is highest there.
    colours = np.array([bright_colour(k / K) for k in range(K)])[maps.argmax(2)]
    height = maps.max(2, keepdims=True).clip(0, 1)
    grey = np.repeat(photo.mean(2, keepdims=True) * 0.5, 3, 2)
    hot = (grey * (1 - height) + colours * height).astype(np.uint8)
    label(seen, f'image {sample["image_id"]}, people: {len(people)}', (0, 0), scale=1.4)
    label(hot, f'{K} heatmaps, maximum {sample["heatmaps"].max():.2f}', (0, 0), scale=1.4)
    return np.concatenate([seen, hot], 1)


def sheet(pairs):
    """Pictures of one size on a dark ground, ACROSS in a row."""
    pairs = pairs + [np.full_like(pairs[0], GROUND)] * (-len(pairs) % ACROSS)
    return in_grid(pairs, ACROSS)[:-GAP, :-GAP]


def first_samples(config, count):
    """The first `count` samples of a training, as dicts of arrays. Raises UserError."""
    config = copy.deepcopy(config)
    # Neither changes a sample, and a few samples are ready sooner without other processes.
    config['train'].update(batchsize=1, num_workers=0)
    loader = importlib.import_module(config['data_provider']).init(config)['train']
    for _, batch in zip(range(count), loader, strict=False):
        if batch['problem'][0]:
            print(f'warning: {batch["problem"][0]}; another photo takes its place')
        yield {key: np.asarray(values[0]) for key, values in batch.items()}


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('-t', '--task', default='pose', help='a module in task/')
    parser.add_argument('-n', type=int, default=16, metavar='N', help='how many samples')
    parser.add_argument('--out', type=Path, default=Path('samples'), metavar='FOLDER')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.n < 1:
        parser.error(f'-n {args.n}: expected a number of samples from 1')
    task = load_task(args.task).__config__ | {'run': {'task': args.task}}
    config = apply_settings(task, args.set)
    check_config(config)
    config = importlib.import_module(config['data_provider']).prepare(config)
    skeleton = ref.get_joints(config['data']).skeleton
    pairs = [draw_sample(sample, skeleton) for sample in first_samples(config, args.n)]
    each = ACROSS * DOWN
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob('sheet-*.jpg'):
        old.unlink()
    for number, start in enumerate(range(0, len(pairs), each), 1):
        path = args.out / f'sheet-{number:02d}.jpg'
        save_picture(path, sheet(pairs[start : start + each]))
        print(path)


if __name__ == '__main__':
    sys.exit(exit_code(main))
