"""How fast this machine runs every part of the program, each beside a plain reference.

python -m tests.benchmark                   one table
python -m tests.benchmark --json out.json   the same figures for machines
python -m tests.benchmark --device cuda     the network and what follows it on a GPU
python -m tests.benchmark --quick           without the default network, which takes minutes

Figures are medians; part and reference take turns in one run, so that their ratio holds on a
machine that is busy with other things. The references, those of the tests as well, do what the
method says one image, joint and person at a time.
"""

import argparse
import copy
import ctypes
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

import test
from data.coco_pose import dp, ref
from data.coco_pose.splits import open_file
from task import pose
from task.loss import AELoss
from tests import references
from utils.device import choose_device, choose_precision

GFLOP_512 = 444  # of one forward pass of the default network over one 512 x 512 photo
K = len(ref.COCO.names)


def medians(functions, repeats, device):
    """Median seconds of several functions that take turns, after one call each to warm up."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn > 0:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def keep_memory():
    """Has the C library (if it is glibc) keep freed memory, as a run does by itself.

    In a run every part takes its memory from what the network's maps have left. Alone it would get
    each block fresh from the system, and a fresh page costs more than most parts do on it.
    """
    trim_threshold, mmap_max = -1, -4  # names in malloc.h
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def synchronize(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


# Inputs --------------------------------------------------------------------------------------


def drawn_people(count, seed=0, size=512):
    """`count` people (P, K, 3) of plausible size, each in a box of its own, in a square frame."""
    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(count)))
    cell = size / columns
    corners = np.array([(i % columns, i // columns) for i in range(count)])[:, None] * cell
    points = corners + rng.uniform(0.05, 0.95, (count, K, 2)) * cell
    # Some joints of everybody are hidden, as in photos.
    visible = 2 * (rng.random((count, K, 1)) < 0.7)
    return np.concatenate([points, visible], 2)


def drawn_outputs(people_input, sides, seed=0):
    """What a trained network would answer: per scale (2, C, R, R), the photo and its mirror."""
    rng = np.random.default_rng(seed)
    outputs = []
    for side in sides:
        R = side // 4
        passes = []
        for mirrored in (False, True):
            people = people_input.copy()
            people[..., :2] *= R / 512
            if mirrored:
                people = people[:, list(ref.COCO.flip)]
                people[..., 0] = R - people[..., 0]
            det = 0.9 * dp.GenerateHeatmap(R, K)(people) + rng.uniform(0, 0.05, (K, R, R))
            tag = rng.normal(0, 1, (K, R // 8, R // 8))
            tag = np.stack([cv2.resize(one, (R, R)) for one in tag])
            pixels, inside = dp.to_pixels(people, R)
            for p, k in np.argwhere(inside):
                x, y = pixels[p, k]
                tag[k, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 3 * p
            passes.append(np.concatenate([det, tag]))
        outputs.append(torch.from_numpy(np.stack(passes)).float())
    return outputs


def photo_split(folder):
    """A Split of one 640 x 480 photo with three people and a crowd, written into `folder`."""
    rng = np.random.default_rng(0)
    photo = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (640, 480))
    noise = rng.integers(-12, 12, photo.shape)
    photo = np.clip(photo + noise, 0, 255).astype(np.uint8)
    cv2.imwrite(str(Path(folder) / '1.jpg'), photo)
    annotations = [
        {'image_id': 1, 'iscrowd': 0, 'num_keypoints': 12, 'area': 5000 + i,
         'keypoints': (person * [1, 0.9, 1]).flatten().tolist()}
        for i, person in enumerate(drawn_people(3))
    ]  # fmt: skip
    annotations.append(
        {'image_id': 1, 'iscrowd': 1, 'num_keypoints': 0, 'area': 900, 'keypoints': [0] * 3 * K,
         'segmentation': {'size': [480, 640], 'counts': [0, 20 * 480, 620 * 480]}}
    )  # fmt: skip
    record = {'id': 1, 'file_name': '1.jpg', 'width': 640, 'height': 480}
    file = Path(folder) / 'photo.json'
    file.write_text(json.dumps({'images': [record], 'annotations': annotations}), 'utf-8')
    return open_file(file, folder, ref.COCO)


# Parts ------------------------------------------------------------------------------------------


def bench_sample(config, repeats, device):
    """One training sample on one core."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        split = photo_split(folder)
        dataset = dp.Dataset(split, config['train'], config['augmentation'])
        people = split.keypoints[split.people(0)]
        rng = np.random.default_rng(0)
        ours, plain = medians(
            [lambda: dataset[0, 0], lambda: references.sample(split.path(0), people, config, rng)],
            repeats, device,
        )  # fmt: skip
    return [row('training sample at 512, one core', ours, plain, wanted=0.008)]


def bench_tag_loss(repeats, device):
    """Tag loss, forward and backward, of 8 images after each of 4 stacks, with more people."""
    rows = []
    R = 128
    generator = torch.Generator().manual_seed(0)
    stacks = [
        torch.randn(8, K * R * R, generator=generator).to(device).requires_grad_() for _ in range(4)
    ]
    for people in (1, 3, 10, 30):
        keypoints = torch.zeros(8, 30, K, 2, dtype=torch.int64)
        keypoints[:, :people, :, 0] = torch.randint(K * R * R, (8, people, K), generator=generator)
        keypoints[:, :people, :, 1] = 1
        keypoints = keypoints.to(device)

        def gradients(loss, keypoints=keypoints):
            return torch.autograd.grad(sum(loss(tags, keypoints) for tags in stacks), stacks)

        functions = [partial(gradients, loss) for loss in (tag_loss, reference_tag_loss)]
        count = 4 * repeats if people < 30 else repeats
        ours, plain = medians(functions, count, device)
        rows.append(row(f'tag loss, 8 images x 4 stacks, {people} people', ours, plain, 0.01))
    return rows


def tag_loss(tags, keypoints):
    """push + pull, summed over images."""
    push, pull = AELoss()(tags, keypoints)
    return push.sum() + pull.sum()


def reference_tag_loss(tags, keypoints):
    """The same, one image at a time: tags (B, K*R*R)."""
    images = zip(tags[..., None], keypoints, strict=True)
    return sum(sum(references.tag_losses(*image)) for image in images)


def bench_after_network(config, repeats, device):
    """Everything from the network's outputs to people in image pixels."""
    rows = []
    for mode, wanted in (('single', {10: 0.015, 30: 0.025}), ('multi', {10: 0.06, 30: 0.06})):
        scales = config['test']['scales'][mode]
        frames = test.input_frames(512, 512, config, scales)
        for people in (1, 3, 10, 30):
            preds = drawn_outputs(drawn_people(people), [res[0] for res, _ in frames])
            on_device = [pred.to(device) for pred in preds]
            functions = [
                partial(test.find_people, on_device, frames, (512, 512), scales, config),
                partial(references.find_people, preds, scales, config['test']),
            ]
            ours, plain = medians(functions, repeats, device)
            name = f'after the network, {mode}, {people} people'
            rows.append(row(name, ours, plain, wanted.get(people)))
    return rows


PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def bench_network(config, repeats, device):
    """The default network forward: both precisions at 512, then how `auto` grows."""
    rows, network = [], pose.make_network(config).network.to(device)
    auto = 'bf16' if choose_precision('auto', device)[0] == torch.bfloat16 else 'fp32'
    wanted = {'fp32': 4.7, 'bf16': 2.1}
    limits = {}
    for name, dtype in PRECISIONS.items():
        matrix = torch.rand(4096, 4096, device=device).to(dtype)
        (seconds,) = medians([partial(torch.matmul, matrix, matrix)], repeats, device)
        limits[name] = 2 * 4096**3 / seconds / 1e9
    for side, count, names in (
        (512, 1, ('fp32', 'bf16')),
        (256, 1, (auto,)),
        (512, 2, (auto,)),
        (1024, 1, (auto,)),
    ):
        images = torch.rand(2 * count, side, side, 3)
        functions = [
            partial(test.Predictor(network, config, device, PRECISIONS[name]), images)
            for name in names
        ]
        for name, seconds in zip(names, medians(functions, repeats, device), strict=True):
            rate = 2 * count * GFLOP_512 * (side / 512) ** 2 / seconds
            usual = wanted[name] if (side, count) == (512, 1) else None
            entry = row(f'network, {count} photo + mirror at {side}, {name}', seconds, None, usual)
            entry['note'] = (
                f'{rate:.0f} GFLOP/s, matrix product {limits[name]:.0f}; '
                f'{count / seconds:.2f} photos/s'
            )
            rows.append(entry)
    return rows


def bench_training(config, repeats, device):
    """Whole steps of the default network at 512."""
    rows, task = [], pose.make_network(config).to(device)
    auto = 'bf16' if choose_precision('auto', device)[0] == torch.bfloat16 else 'fp32'
    wanted = {'fp32': 16.5, 'bf16': 7.5}
    optimizer = torch.optim.Adam(task.parameters(), fused=True)

    def step(batch, dtype):
        losses = task(**batch, dtype=dtype)
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()

    for B, names in ((2, ('fp32', 'bf16')), (1, (auto,))):
        batch = {key: value.to(device) for key, value in training_batch(B, 512).items()}
        functions = [partial(step, batch, PRECISIONS[name]) for name in names]
        for name, seconds in zip(names, medians(functions, repeats, device), strict=True):
            entry = row(
                f'training step, batch {B} at 512, {name}',
                seconds,
                None,
                wanted[name] if B == 2 else None,
            )
            entry['note'] = f'{B / seconds:.2f} images/s'
            rows.append(entry)
    return rows


def training_batch(B, side):
    """Random inputs of a training step: three people in each of B images."""
    R = side // 4
    people = [drawn_people(3, seed, R) for seed in range(B)]
    refs = dp.KeypointsRef(30, K)
    heatmaps = dp.GenerateHeatmap(R, K)
    return {
        'imgs': torch.rand(B, side, side, 3),
        'masks': torch.ones(B, R, R),
        'keypoints': torch.from_numpy(np.stack([refs(person, R) for person in people])),
        'heatmaps': torch.from_numpy(np.stack([heatmaps(person) for person in people])),
    }


def row(part, seconds, reference=None, wanted=None):
    """One line of the table, in seconds."""
    ratio = reference / seconds if reference else None
    return {
        'part': part,
        'seconds': seconds,
        'reference': reference,
        'ratio': ratio,
        'wanted': wanted,
    }


def show(seconds):
    """Seconds as text, in the unit that suits them."""
    if seconds is None:
        return ''
    return f'{seconds:.2f} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default=str(choose_device(pose.__config__['test'])))
    parser.add_argument('--json', metavar='FILE')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    keep_memory()
    config = copy.deepcopy(pose.__config__)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else processor()
    _, precision = choose_precision('auto', device)
    print(f'{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision}')
    print(f'{"part":46} {"median":>9} {"wanted":>9} {"reference":>10} {"ratio":>7}')
    rows = []
    parts = [
        lambda: bench_sample(config, 4 * args.repeats, device),
        lambda: bench_tag_loss(args.repeats, device),
        lambda: bench_after_network(config, args.repeats, device),
    ]
    if not args.quick:
        parts.append(lambda: bench_network(config, args.repeats, device))
        parts.append(lambda: bench_training(config, args.repeats, device))
    for part in parts:
        for entry in part():
            rows.append(entry)
            ratio = f'{entry["ratio"]:.1f} x' if entry['ratio'] else ''
            print(
                f'{entry["part"]:46} {show(entry["seconds"]):>9} {show(entry["wanted"]):>9} '
                f'{show(entry["reference"]):>10} {ratio:>7} {entry.get("note", "")}'.rstrip(),
                flush=True,
            )
    if device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated(device)
    else:  # kilobytes, but on a Mac bytes
        unit = 1 if platform.system() == 'Darwin' else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f'peak memory {peak / 2**30:.1f} GiB')
    if args.json:
        figures = {
            'machine': name,
            'torch': str(torch.__version__),
            'rows': rows,
            'peak_bytes': peak,
        }
        Path(args.json).write_text(json.dumps(figures, indent=2) + '\n')


def processor():
    """The name of the CPU."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == '__main__':
    main()
