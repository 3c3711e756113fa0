"""Damaged files from elsewhere: a clear error or a right result, and nothing else.

python tests/faults/fuzz.py                     2,000 cases; exit code 1 if anything was wrong
python tests/faults/fuzz.py --cases 300 --seed 1
python tests/faults/fuzz.py --only 1234         one case of these again, with its traceback

Valid files of every kind (checkpoints in both formats, configs, annotations, photos, metrics) are
damaged and read by the program's own functions, in processes that are watched: a case may take 10
seconds and 2 GB more than the process had. What is read without an error must be right: the same as
before the damage where the file has check sums, else of the right types, shapes and ranges.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for conftest
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from conftest import TINY
from faults._damage import (
    PHOTOS,
    SIZE,
    Material,
    damage_archive,
    damage_bytes,
    damage_field,
    damage_json,
    damage_region,
    damage_state,
    lie_of_size,
    make_material,
    saved,
)
from pycocotools import mask as rle_mask

import test
import train
from data.coco_pose import dp, ref
from data.coco_pose.photo import read_photo
from data.coco_pose.results import coco_scores
from data.coco_pose.splits import open_splits
from task import pose
from utils import convert
from utils.config import apply_settings, flatten
from utils.errors import UserError
from utils.metrics import add_metrics
from utils.regions import MOST_PIXELS, draw_mask
from utils.run import Run

SECONDS, BYTES = 10, 2 << 30  # that a case may take
WORKERS = 2


# --- cases: each damages one file and reads it; it returns the damage, the words of which a clear
# error has one, and a function that returns after a right result and raises AssertionError after
# a wrong one ---


def checkpoint_case(material, rng):
    """A whole checkpoint: training goes on with it, evaluation uses it, convert takes it."""
    form = str(rng.choice(['new', 'old']))
    data, exact = material.checkpoint if form == 'new' else material.old_checkpoint, False
    turn = rng.random()
    if turn < 0.4:
        what, data = damage_bytes(data, rng)
        exact = form == 'new'
    elif turn < 0.6 and form == 'new':
        what, data = damage_archive(data, rng)
    else:
        what, state = damage_state(material.state, rng)
        data = saved(state, old=form == 'old')
    path = write_run(material, data, material.config)
    use = [continue_run, evaluate_run, convert_run][int(rng.integers(3))]
    # A config within it becomes that of a new run, whose values are named by their keys.
    words = (path.name, 'are not finite at step', *flatten(pose.__config__))
    return f'{form} format, {what}', words, lambda: use(material, exact)


def config_case(material, rng):
    """A run's config.json: training and evaluation read it."""
    what, data = damage_json(material.config, rng)
    write_run(material, material.checkpoint, data)
    known = flatten(pose.__config__)

    def use():
        found = flatten({k: v for k, v in Run('run1').config('pose').items() if k != 'run'})
        assert found.keys() == known.keys()
        for key, value in found.items():
            fraction = type(known[key]) is float and type(value) is int
            assert fraction or type(value) is type(known[key]), f'{key}: {value!r}'
            assert not isinstance(value, float) or math.isfinite(value), f'{key}: {value!r}'
        _, loaders, state, _ = open_training()
        sample, config = loaders['train'].dataset[0, 0], state.config
        check_sample(sample, config['train'], len(ref.joint_names(config['data'])))
        test.load('run1')

    # A value that fits no other value, path or network is named by its key or by what it is.
    words = ('config.json', 'checkpoint.pth.tar', *known, 'no COCO annotations at', 'no photos of')
    return what, words, use


def annotations_case(material, rng):
    """An annotation file: joints, splits, every sample, and an evaluation of the truth itself."""
    name = str(rng.choice(['coco.json', 'own.json']))
    damage = [damage_region, damage_field, damage_json][int(rng.integers(3))]
    what, data = damage(material.annotations[name], rng)
    file = Path('annotations.json').absolute()
    file.write_bytes(data)
    settings = [f'data.images={material.folder}/images', f'data.annotations={file}']

    def use():
        config = dp.prepare(apply_settings(pose.__config__, [*TINY, *settings]))
        for split in open_splits(config['data']):
            K = len(split.joints.names)
            dataset = dp.Dataset(split, config['train'], config['augmentation'])
            for number in range(len(dataset)):
                check_sample(dataset[0, number], config['train'], K)
                inside = split.path(number).resolve()
                assert inside.is_relative_to(material.folder / 'images'), inside
            check_crowds(split)
            check_truth(split)

    return f'{name}, {what}', (file.name,), use


def photo_case(material, rng):
    """A photo, with or without a record of its size."""
    name = list(PHOTOS)[int(rng.integers(len(PHOTOS)))]
    original = material.photos[name]
    lie = rng.random() < 0.25
    what, data = ('size', lie_of_size(name, original, rng)) if lie else damage_bytes(original, rng)
    path = Path(f'photo{Path(name).suffix}')
    path.write_bytes(data)
    size = SIZE if rng.random() < 0.5 else (0, 0)

    def use():
        photo = read_photo(path, size)
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3
        assert 0 < photo.size // 3 <= MOST_PIXELS
        assert size != SIZE or photo.shape[:2] == SIZE
        if name.endswith('.png') and not lie:  # which has check sums
            (material.folder / 'original').write_bytes(original)
            assert np.array_equal(photo, read_photo(material.folder / 'original'))

    return f'{name}, {what}', (path.name,), use


def metrics_case(material, rng):
    """A run's metrics.jsonl, to which a line is added."""
    what, data = damage_bytes(material.metrics * 4, rng)
    write_run(material, material.checkpoint, material.config)
    run = Run('run1')
    path = run.folder / 'metrics.jsonl'
    path.write_bytes(data)

    def use():
        whole = set(material.metrics.splitlines()) & set(data.splitlines())
        add_metrics(path, {'epoch': 99, 'step': 3})
        lines = path.read_bytes().splitlines()
        assert whole <= set(lines)
        epochs = [json.loads(line)['epoch'] for line in lines]
        assert epochs[-1] == 99 and all(type(e) is int and e < 99 for e in epochs[:-1])

    return what, (path.name,), use


CASES = {
    checkpoint_case: 0.35,
    annotations_case: 0.3,
    photo_case: 0.2,
    config_case: 0.1,
    metrics_case: 0.05,
}


def write_run(material, checkpoint, config):
    """Writes exp/run1 anew; returns the path of its checkpoint."""
    shutil.rmtree('exp', ignore_errors=True)
    run = Run('run1')
    run.folder.mkdir(parents=True)
    run.config_path.write_bytes(config)
    run.checkpoint().write_bytes(checkpoint)
    return run.checkpoint()


def open_training():
    """What `train.py -c run1` has before its first step."""
    args = SimpleNamespace(exp='pose', continue_exp='run1', task='pose', init=None, set=[])
    return train.prepare(args)


def continue_run(material, exact):
    """Resumes the run and takes a step."""
    (model, loaders, state, report), before = open_training(), material.state
    own = state.network.state_dict()
    if exact:
        assert equal(own, before['state_dict'])
        assert equal(state.optimizer.state_dict()['state'], before['optimizer']['state'])
        for key, value in state.progress().items():
            assert equal(value, before[key]), key
        assert equal(torch.get_rng_state(), before['random']['cpu'])
    assert all(value.isfinite().all() for value in own.values())
    batch, settings = next(iter(loaders['train'])), state.config['train']
    step = train.train_step(
        model, state.optimizer, state.scaler, batch, 1e-3, settings, torch.float32
    )
    train.add_losses(state, [(state.step + 1, batch['image_id'], *step)], report)
    assert all(math.isfinite(value) for value in state.losses().values())
    assert train.save(state, report)


def evaluate_run(material, exact, name='run1'):
    """Loads the run as test.py does and looks for people in a photo."""
    func = test.load(name)
    own = func.network.state_dict()
    assert all(value.isfinite().all() for value in own.values())
    assert not exact or equal(own, material.state['state_dict'])
    photo = read_photo(material.folder / 'images/colour.png')
    people, scores = test.multiperson(photo, func)
    assert people.shape == (len(scores), 17, 5) and np.isfinite(people).all()


def convert_run(material, exact):
    """Makes a run of the file as if it came from elsewhere, and evaluates that."""
    convert.convert(Run('run1').checkpoint(), Run('new'))
    evaluate_run(material, exact, 'new')


def equal(a, b):
    """Whether nested dicts of tensors and numbers are the same."""
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in b)
    return torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def check_sample(sample, settings, K):
    """A training sample is of the right shapes and in its ranges."""
    side, R, P = settings['input_res'], settings['output_res'], settings['max_num_people']
    shapes = {'imgs': (side, side, 3), 'masks': (R, R), 'heatmaps': (K, R, R)}
    for name, shape in (shapes | {'keypoints': (P, K, 2)}).items():
        assert sample[name].shape == shape, f'{name}: {sample[name].shape}'
    for name in shapes:
        assert 0 <= sample[name].min() <= sample[name].max() <= 1, name  # NaN is not
    index, visible = sample['keypoints'][..., 0], sample['keypoints'][..., 1]
    assert 0 <= index.min() <= index.max() < K * R * R and set(visible.flat) <= {0, 1}
    torch.tensor([sample['image_id']])


def check_crowds(split):
    """Regions of crowds cover as many pixels as an independent reader of run lengths counts."""
    for number in range(len(split)):
        for crowd in split.crowds(number):
            mask = draw_mask([crowd], *SIZE)
            assert mask.shape == SIZE and mask.max() <= 1
            if isinstance(crowd, dict) and crowd['size'] == list(SIZE):
                assert mask.sum() == rle_mask.area(crowd)
                again = rle_mask.encode(np.asfortranarray(mask))
                assert np.array_equal(mask, draw_mask([again], *SIZE))


def check_truth(split):
    """The truth itself, taken for detections, is found whole: AP is 1, or -1 without people."""
    detections = [
        {'image_id': int(split.ids[number]), 'category_id': split.category['id'], 'score': 0.9,
         'keypoints': split.keypoints[row].flatten().tolist()}
        for number in range(len(split)) for row in split.people(number)
    ]  # fmt: skip
    figures, *_ = coco_scores(split, detections)
    assert figures['AP'] > 0.999 or figures['AP'] == -1, figures


# --- running them ---


def try_case(material, seed, number):
    """The kind of case `number`, its damage, its outcome, and of a finding what was found."""
    rng = np.random.default_rng((seed, number))
    case = list(CASES)[int(rng.choice(len(CASES), p=list(CASES.values())))]
    kind = case.__name__.removesuffix('_case')
    damage, use = 'before its use', None
    try:
        damage, words, use = case(material, rng)
        use()
    except UserError as error:
        named = any(word in str(error) for word in words)
        return kind, damage, 'error' if named else 'unclear error', str(error)
    except AssertionError:
        return kind, damage, 'wrong result', traceback.format_exc()
    except BaseException as error:
        return kind, damage, type(error).__name__, traceback.format_exc()
    return kind, damage, 'right', ''


def judged(damage, outcome):
    """The outcome, but an error about a file that nothing was done to is a finding."""
    undamaged = damage.split(', ')[-1] == 'nothing'
    return 'refused' if undamaged and outcome == 'error' else outcome


def resident(which):
    """VmRSS or VmHWM of this process in bytes: the memory that it has, or the most it had."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def work(connection, folder, own, seed):
    """A worker: tries the cases whose numbers arrive, in a folder of its own."""
    for stream in (1, 2):  # decoders complain, also from C
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.chdir(own)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter('ignore')
    warnings.simplefilter('error', RuntimeWarning)  # numbers that are none any more
    material = Material(folder)
    total = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (total + 2 * BYTES,) * 2)  # for the machine's sake
    while (number := connection.recv()) is not None:
        Path('/proc/self/clear_refs').write_text('5')  # the most it had is counted from here on
        before = resident('VmRSS')
        kind, damage, outcome, text = try_case(material, seed, number)
        grown = resident('VmHWM') - before
        if grown > BYTES:
            outcome, text = 'memory', f'{grown / 2**30:.1f} GB'
        connection.send((kind, damage, outcome, text))


class Worker:
    """A process that tries cases, and the case that it is at."""

    def __init__(self, folder, number, seed):
        own = Path(folder) / f'worker{number}'
        own.mkdir(exist_ok=True)
        self.start = lambda: self.fork(folder, own, seed)
        self.start()

    def fork(self, folder, own, seed):
        spawn = multiprocessing.get_context('spawn')
        self.connection, other = spawn.Pipe()
        self.process = spawn.Process(target=work, args=(other, str(folder), str(own), seed))
        self.process.start()
        other.close()
        self.number, self.since = None, math.inf

    def begin(self, number):
        self.connection.send(number)
        # The first case waits for the process to start.
        self.since = time.monotonic() + (30 if self.number is None else 0)
        self.number = number

    def stop(self):
        """Ends the process; one that is at a case is not asked."""
        if self.since == math.inf:
            self.connection.send(None)
            self.process.join(SECONDS)
        self.process.kill()
        self.process.join()

    def result(self):
        """What came of the case; a process that died or hangs is replaced."""
        try:
            if self.connection.poll():
                return self.connection.recv()
            outcome, text = 'hang', f'over {SECONDS} s'
        except (EOFError, ConnectionError):
            self.process.join()
            outcome, text = 'crash', f'exit code {self.process.exitcode}'
        self.stop()
        self.start()
        return '?', '?', outcome, text


def run(cases=2000, seed=0):
    """Per kind of file, as `python -m tests.faults` takes it: what, how often, and the findings."""
    for what, rows in by_file(tally(cases, seed)).items():
        right, errors = (sum(row[key] for row in rows) for key in ('right', 'errors'))
        findings = [text for row in rows for text in row['findings']]
        times = sum(row['cases'] for row in rows)
        yield f'damaged {what}: {right} read right, {errors} clear errors', times, findings


def by_file(rows):
    """The rows of each kind of file."""
    files = sorted({row['file'] for row in rows})
    return {file: [row for row in rows if row['file'] == file] for file in files}


def tally(cases, seed):
    """Tries so many cases. Returns rows of what was tried, how often, and what came of it.

    Each row is a dict: file and damage, the numbers of cases, right results and clear errors, and a
    list of findings: texts, which there should be none of.
    """
    rows, numbers = {}, iter(range(cases))
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context('spawn').Process(target=make_material, args=(folder,))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError('the valid files could not be made')
        workers = [Worker(folder, i, seed) for i in range(min(WORKERS, cases))]
        for worker in workers:
            worker.begin(next(numbers))
        busy = list(workers)
        while busy:
            wait([worker.connection for worker in busy], 1)
            for worker in list(busy):
                late = time.monotonic() - worker.since > SECONDS
                if not late and not worker.connection.poll():
                    continue
                number = worker.number
                kind, damage, outcome, text = worker.result()
                outcome = judged(damage, outcome)
                row = rows.setdefault((kind, damage), Counter(findings=[]))
                row['cases'] += 1
                row[outcome] += 1
                if outcome not in ('right', 'error'):
                    row['findings'].append(f'case {number} of seed {seed}: {outcome}: {text}')
                following = next(numbers, None)
                if following is None:
                    worker.since = math.inf
                    busy.remove(worker)
                else:
                    worker.begin(following)
        for worker in workers:
            worker.stop()
    return [
        {'file': kind, 'damage': damage, 'cases': row['cases'], 'right': row['right'],
         'errors': row['error'], 'findings': row['findings']}
        for (kind, damage), row in sorted(rows.items(), key=lambda item: item[0])
    ]  # fmt: skip


def only(number, seed):
    """Tries one case in this process and prints all that came of it."""
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context('spawn').Process(target=make_material, args=(folder,))
        maker.start()
        maker.join()
        own = Path(folder) / 'own'
        own.mkdir()
        os.chdir(own)
        print(*try_case(Material(folder), seed, number), sep='\n')
        os.chdir('/')


def report(rows):
    """The rows summed up per file, and the findings, as text."""
    lines = [f'{"file":12}{"cases":>8}{"right":>8}{"error":>8}{"wrong":>8}']
    for file, own in (by_file(rows) | {'all': rows}).items():
        sums = [sum(row[key] for row in own) for key in ('cases', 'right', 'errors')]
        sums.append(sum(len(row['findings']) for row in own))
        lines.append(f'{file:12}' + ''.join(f'{number:8}' for number in sums))
    for row in rows:
        lines += [f'\n{row["file"]}, {row["damage"]}: {text}' for text in row['findings']]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', type=int, metavar='N', help='the number of one case')
    args = parser.parse_args()
    if args.only is not None:
        return only(args.only, args.seed)
    rows = tally(args.cases, args.seed)
    print(report(rows))
    return int(any(row['findings'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
