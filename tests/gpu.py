"""What only a GPU can show: whether all is right there, and how fast; a table as it comes.

python -m tests.gpu                         about 8 minutes on one NVIDIA GPU
python -m tests.gpu --json gpu.json         the same figures for machines
python -m tests.gpu --device cpu --quick    at a tiny size and on the CPU, to try the program itself

What one GPU cannot do is skipped, and so is what is left when the minutes are over. The exit code
is 1 where anything is wrong.
"""

import argparse
import copy
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import test
import train
from task import pose
from tests import benchmark
from tests.faults import common
from utils.device import choose_device, choose_precision
from utils.metrics import read_metrics

ROOT = Path(__file__).parent.parent
TINY = {'nstack': 2, 'inp_dim': 16, 'increase': 8, 'stem': [8, 8, 16]}
WEIGHTS = pose.__config__['train']['loss_weights']


class Skipped(Exception):
    """Why a check cannot be done here."""


def default_config(quick):
    config = copy.deepcopy(pose.__config__)
    config['model'] |= TINY if quick else {}
    return config


def relative(found, wanted):
    """The distance of two tensors as a share of the second's norm."""
    return ((found - wanted).norm() / wanted.norm()).item()


def losses_and_gradients(task, batch, device, dtype):
    """Of all images and stacks, in float32 on the CPU: losses, and gradients as one vector.

    Gradients are scaled up while they are computed, as a GradScaler does for float16.
    """
    task = task.to(device)
    task.zero_grad()
    losses = task(**{k: v.to(device) for k, v in batch.items()}, dtype=dtype)
    scale = 2.0**16
    (scale * train.weighted_sum({k: v.mean() for k, v in losses.items()}, WEIGHTS)).backward()
    gradients = torch.cat([param.grad.flatten() for param in task.parameters()]).cpu() / scale
    return torch.stack([losses[name].detach().float().cpu() for name in WEIGHTS]), gradients


def numbers(device, quick):
    """Losses and gradients of the default network against those of the CPU."""
    batch = benchmark.training_batch(2, 64 if quick else 256)
    task = pose.make_network(default_config(quick))
    wanted = losses_and_gradients(task, batch, torch.device('cpu'), torch.float32)
    for name, tf32, limits in (
        ('fp32', False, (1e-4, 1e-3)),
        ('fp32', True, (1e-2, 5e-2)),
        ('bf16', True, (5e-2, 0.3)),
        ('fp16', True, (1e-2, 0.1)),
    ):
        choose_device({'device': device.type, 'tf32': tf32})
        found = losses_and_gradients(task, batch, device, choose_precision(name, device)[0])
        apart = [relative(a, b) for a, b in zip(found, wanted, strict=True)]
        label = f'{name}{" with TF32" if name == "fp32" and tf32 else ""} against the CPU'
        text = f'losses {apart[0]:.1e}, gradients {apart[1]:.1e} apart'
        yield label, text, all(a < limit for a, limit in zip(apart, limits, strict=True))


def steps(device, quick):
    """Whole steps in every precision: applied, and the losses fall."""
    for name in ('fp32', 'bf16', 'fp16'):
        config, dtype = default_config(quick), choose_precision(name, device)[0]
        task = pose.make_network(config).to(device)
        optimizer = torch.optim.Adam(task.parameters(), fused=True)
        scaler = torch.amp.GradScaler(device.type, enabled=name == 'fp16')
        batch = benchmark.training_batch(2, 64 if quick else 256)
        losses, applied = [], []
        for _ in range(30):
            means, _, done = train.train_step(
                task, optimizer, scaler, batch, 2e-4, config['train'], dtype
            )
            losses.append(means[0].mean().item())
            applied.append(done)
        text = f'detection {losses[0]:.2e} -> {losses[-1]:.2e}, {applied.count(False)} skipped'
        yield f'30 steps in {name}', text, losses[-1] < losses[0] and sum(applied) > 15


def several_gpus(device, quick):
    """DataParallel: gradients of one GPU, and activations with their channels last."""
    if torch.cuda.device_count() < 2:
        raise Skipped('DataParallel needs two GPUs')
    task, batch = pose.make_network(default_config(quick)), benchmark.training_batch(4, 256)
    wanted = losses_and_gradients(copy.deepcopy(task), batch, device, torch.float32)
    formats, conv = [], task.network.outs[0].conv
    conv.register_forward_hook(
        lambda _, inputs, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    found = losses_and_gradients(nn.DataParallel(task), batch, device, torch.float32)
    yield 'DataParallel', f'gradients {relative(found[1], wanted[1]):.1e} apart', all(formats)


def command(script, *args, ranks=0, folder):
    """Runs an entry script in a folder; returns what it printed."""
    launcher = common.torchrun(ranks=ranks) if ranks else common.PLAIN
    done = subprocess.run(
        [*launcher, str(ROOT / script), *args],
        cwd=folder, env=common.with_root_on_path(), text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f'{script} {" ".join(args)}:\n{done.stdout}{done.stderr}')
    return done.stdout


def last_row(folder, name):
    """The figures of a run's last epoch."""
    return read_metrics(folder / 'exp' / name / 'metrics.jsonl')[-1]


def runs(device, quick, folder):
    """Runs against a plain one: one NCCL rank, SyncBatchNorm; compiled; in float16; resumed."""
    settings = ['--set', f'train.device={device.type}', 'train.precision=fp32', 'train.tf32=False',
                'data.drawn.pictures=[64,16]', 'train.train_iters=20', 'train.num_workers=2',
                'train.eval_epochs=0', f'data.drawn.size={128 if quick else 256}']  # fmt: skip
    start = ('train.py', '-t', 'quickstart', '-e')
    two = 'train.epochs=2'
    command(*start, 'plain', *settings, two, folder=folder)
    command(*start, 'rank', *settings, two, ranks=1, folder=folder)
    command(*start, 'compiled', *settings, two, 'train.compile=True', folder=folder)
    command(*start, 'fp16', *settings, two, 'train.precision=fp16', folder=folder)
    command(*start, 'halves', *settings, 'train.epochs=1', folder=folder)
    command('train.py', '-c', 'halves', '--set', two, folder=folder)
    plain = last_row(folder, 'plain')
    for name, label in (
        ('rank', 'one rank of NCCL, SyncBatchNorm'),
        ('compiled', 'compiled'),
        ('fp16', 'float16'),
        ('halves', 'resumed'),
    ):
        other = last_row(folder, name)
        apart = max(abs(other[key] / plain[key] - 1) for key in WEIGHTS)
        yield f'{label}, against a plain run', f'losses {apart:.1e} apart', apart < 0.05
    weights = [
        torch.load(folder / f'exp/{name}/checkpoint.pth.tar', weights_only=True)['state_dict']
        for name in ('plain', 'halves')
    ]
    equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    yield 'resumed, weights', 'equal' if equal else 'not equal: CUDA adds up in any order', None


def photos(shared):
    """Settings for the four photos beside the repository, to train on and to validate with."""
    file = shared / 'coco/annotations/person_keypoints_sample.json'
    if not file.exists():
        raise Skipped(f'there is no {file}')
    return [f'data.images={shared}/coco/images', f'data.annotations={file}',
            f'data.valid_annotations={file}']  # fmt: skip


def overfit(device, quick, folder, shared):
    """Learns four real photos by heart."""
    count = 5 if quick else 600
    command(
        'train.py', '-t', 'small', '-e', 'four', '--init', 'small', '--set', *photos(shared),
        'train.augment=False', 'train.epochs=1', f'train.train_iters={count}', 'train.ema=0',
        'train.valid_iters=1', 'train.eval_epochs=1', 'train.warmup_iters=20', 'train.batchsize=4',
        f'train.decay_iters=[{count // 2},{count}]', f'train.device={device.type}',
        f'test.device={device.type}', 'test.scales.single=[1.0]', 'test.mirror=False',
        folder=folder,
    )  # fmt: skip
    ap = last_row(folder, 'four')['AP']
    yield f'four photos by heart, {count} steps', f'AP {ap:.3f}', quick or ap > 0.6


def speed(device, quick):
    """Images per second and memory of the default network, beside the matrix product's limit."""
    config = default_config(quick)
    dtype, precision = choose_precision('auto', device)
    yield 'precision', precision, None
    side = 512 if quick else 8192
    matrix = torch.rand(side, side, device=device).to(dtype)
    (seconds,) = benchmark.medians([functools.partial(torch.matmul, matrix, matrix)], 5, device)
    yield 'matrix product', f'{2 * side**3 / seconds / 1e12:.1f} TFLOP/s', None
    task = pose.make_network(config).to(device)
    optimizer = torch.optim.Adam(task.parameters(), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    res = 64 if quick else 512
    for B in (8, 16, 32):
        batch = benchmark.training_batch(B, res)
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        step = functools.partial(
            train.train_step, task, optimizer, scaler, batch, 2e-4, config['train'], dtype
        )
        try:
            (seconds,) = benchmark.medians([step], 2 if quick else 8, device)
        except torch.OutOfMemoryError:
            yield f'training, batch {B}', 'out of memory', None
            continue
        text = f'{B / seconds:.1f} images/s'
        if not quick:
            text += f', {3 * B * benchmark.GFLOP_512 / seconds / 1e3:.0f} TFLOP/s'
        if device.type == 'cuda':
            text += f', {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB'
        yield f'training, batch {B}', text, None
    func = test.Predictor(task.network, config, device, dtype)
    config['train'] |= {'input_res': res, 'output_res': res // 4}
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    for mode in ('single', 'multi'):
        find = functools.partial(test.multiperson, photo, func, mode)
        (seconds,) = benchmark.medians([find], 2 if quick else 8, device)
        yield f'one photo at a time, {mode}', f'{1 / seconds:.1f} photos/s', None


def loading(device, quick, folder, shared):
    """The share of time that training waits for images, by the number of workers."""
    count, size = (2, ['train.input_res=64', 'train.output_res=16']) if quick else (40, [])
    for workers in (2,) if quick else (2, 4, 8, 16):
        if workers > os.cpu_count():
            raise Skipped(f'{workers} workers need as many cores')
        sizes = [f'model.{key}={str(value).replace(" ", "")}' for key, value in TINY.items()]
        command(
            'train.py', '-e', f'workers{workers}', '--set', *photos(shared), 'train.epochs=1',
            'train.batchsize=16', f'train.train_iters={count}', 'train.valid_iters=1',
            'train.eval_epochs=0', f'train.num_workers={workers}', f'train.device={device.type}',
            *size, *sizes * quick, folder=folder,
        )  # fmt: skip
        row = last_row(folder, f'workers{workers}')
        (folder / f'exp/workers{workers}/checkpoint.pth.tar').unlink()
        text = f'{row["images_per_second"]:.1f} images/s, waiting {100 * row["data_wait"]:.0f} %'
        yield f'training with {workers} workers, start included', text, None


def parts(device, quick):
    """The benchmark's rows."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.benchmark', '--device', str(device), '--quick',
         '--repeats', '1' if quick else '5'],
        cwd=ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    for line in done.stdout.splitlines()[2:]:
        yield line[:46].rstrip(), ' '.join(line[46:].split()), None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--minutes', type=float, default=8.0)
    parser.add_argument('--shared', type=Path, default=ROOT.parent / 'shared')
    parser.add_argument('--json', metavar='FILE', type=Path)
    args = parser.parse_args()
    device = choose_device({'device': args.device, 'tf32': True})
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else benchmark.processor()
    print(f'{name}, torch {torch.__version__}')
    table, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place, shared = {'folder': Path(folder)}, {'shared': args.shared.resolve()}
        for check, places in (
            (numbers, {}), (steps, {}), (speed, {}), (runs, place), (overfit, place | shared),
            (loading, place | shared), (several_gpus, {}), (parts, {}),
        ):  # fmt: skip
            try:
                if time.monotonic() - start > 60 * args.minutes:
                    raise Skipped(f'{args.minutes:g} minutes are over')
                for what, found, right in check(device, args.quick, **places):
                    table.append({'what': what, 'found': found, 'right': right})
                    word = {True: 'right', False: 'WRONG', None: ''}[right]
                    print(f'{what:48} {found}  {word}'.rstrip(), flush=True)
            except Skipped as reason:
                print(f'{check.__name__}: skipped, {reason}', flush=True)
                table.append({'what': check.__name__, 'found': f'skipped: {reason}', 'right': None})
            except Exception as error:  # the other checks are worth their minutes
                print(f'{check.__name__}: WRONG, {type(error).__name__}: {error}', flush=True)
                table.append({'what': check.__name__, 'found': str(error), 'right': False})
    print(f'{time.monotonic() - start:.0f} s')
    if args.json:
        args.json.write_text(
            json.dumps({'device': name, 'torch': str(torch.__version__), 'rows': table}, indent=2)
        )
    return int(any(row['right'] is False for row in table))


if __name__ == '__main__':
    sys.exit(main())
