"""What several tests share: golden figures, a small COCO data set, and the two commands."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle_mask

from data.coco_pose import ref
from task import pose
from tests.faults import common
from utils.config import apply_settings
from utils.errors import end_workers
from utils.run import Run

ROOT = Path(__file__).parent.parent
# The tests' figures are those of a CPU; tests/test_gpu.py alone gives the GPUs back.
WITH_GPUS = common.with_root_on_path()
os.environ['CUDA_VISIBLE_DEVICES'] = ''
# Two tests run at a time, see pyproject.toml: their networks are small, and threads would wait.
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)
PATIENCE = 120  # seconds for one test
# A network and a training of a second or two.
TINY = (
    'model.nstack=1',
    'model.inp_dim=8',
    'model.oup_dim=34',
    'model.increase=4',
    'model.stem=[4,8,8]',
    'train.input_res=64',
    'train.output_res=16',
    'train.batchsize=2',
    'train.epochs=1',
    'train.train_iters=3',
    'train.valid_iters=1',
    'train.eval_epochs=0',
    'train.num_workers=0',
    'train.precision=fp32',
    'test.num_workers=0',
    'test.precision=fp32',
)


@pytest.fixture
def with_gpus():
    """The environment for a command that may use the GPUs."""
    return WITH_GPUS


@pytest.fixture(autouse=True)
def patience():
    """A test that hangs fails: loaders have processes, which may wait for ever."""

    def stop(number, frame):
        raise TimeoutError(f'no end after {PATIENCE} seconds')

    names = ('SIGALRM', 'SIGINT', 'SIGTERM', 'SIGCHLD')  # Windows lacks the first and the last
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    alarm = getattr(signal, 'alarm', lambda seconds: None)
    if hasattr(signal, 'SIGALRM'):
        signal.signal(signal.SIGALRM, stop)
    alarm(PATIENCE)
    yield
    alarm(0)
    end_workers()  # else the next test would wait for those that an error left behind
    # A training sets handlers of its own, which the processes of later tests would inherit.
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def root():
    """The folder of train.py and test.py."""
    return ROOT


@pytest.fixture
def tiny():
    """Settings of --set for a network and a training as small as they get."""
    return list(TINY)


@pytest.fixture
def configure():
    """configure('train.seed=1', ...): the config of a tiny network, with settings of --set."""
    return lambda *settings: apply_settings(pose.__config__, [*TINY, *settings])


@pytest.fixture
def shared():
    """The folder of material beside the repository, which a clone does not have."""
    folder = ROOT.parent / 'shared'
    if not folder.is_dir():
        pytest.skip(f'needs {folder.name}/ beside the repository')
    return folder


@pytest.fixture
def golden():
    """golden(name): the path of a golden file, in tests/golden or beside the repository."""

    def find(name):
        for folder in (ROOT / 'tests' / 'golden', ROOT.parent / 'shared' / 'golden'):
            if (folder / name).is_file():
                return folder / name
        pytest.skip(f'needs the golden file {name}')

    return find


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder: runs go to work/exp, as they go to exp/ of the current folder.

    What lies in the repository's own exp/ and data/ is nothing to the tests.
    """
    folder = tmp_path / 'work'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr('utils.run.REPOSITORY', folder)
    monkeypatch.setattr('data.coco_pose.ref.REPOSITORY', folder)
    return folder


@pytest.fixture
def run_script():
    """run_script('train.py', ..., cwd=folder): the command in a process of its own."""

    def run(script, *args, cwd):
        command = [sys.executable, str(ROOT / script), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def call_script(monkeypatch, capsys):
    """call_script('train.py', ...): the command in this process, for it starts in no time.

    The file is executed to its last line, exit code and messages included.
    """

    def call(script, *args):
        monkeypatch.setattr(sys, 'argv', [str(ROOT / script), *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


# A person as fractions of a box: x and y of the 17 joints, seen from the front.
POSE = np.array(
    [
        (0.50, 0.06), (0.53, 0.04), (0.47, 0.04), (0.57, 0.06), (0.43, 0.06), (0.66, 0.20),
        (0.34, 0.20), (0.80, 0.35), (0.20, 0.35), (0.90, 0.50), (0.10, 0.50), (0.60, 0.52),
        (0.40, 0.52), (0.64, 0.74), (0.36, 0.74), (0.66, 0.96), (0.34, 0.96),
    ]
)  # fmt: skip


def stand(box):
    """The joints (17, 3) of a person that fills a box (x, y, w, h), all of them visible."""
    joints = np.full((17, 3), 2.0)
    joints[:, :2] = POSE * box[2:] + box[:2]
    return joints


def person_entry(number, image_id, joints):
    """The annotation of a person with these joints (17, 3)."""
    seen = joints[joints[:, 2] > 0, :2]
    low, high = seen.min(0), seen.max(0)
    box = [*low.tolist(), *(high - low).tolist()]
    x, y, w, h = box
    return {
        'id': number,
        'image_id': image_id,
        'category_id': 1,
        'iscrowd': 0,
        'keypoints': np.where(joints[:, 2:] > 0, joints, 0).round(2).flatten().tolist(),
        'num_keypoints': int((joints[:, 2] > 0).sum()),
        'bbox': box,
        'area': w * h / 2,
        'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


def crowd_entry(number, image_id, size, box, form):
    """The annotation of a crowd in a whole-pixel box (x, y, w, h) of a photo (height, width).

    form: how the region is given: 'runs', 'compressed', 'polygon' or 'box' (by nothing but it).
    """
    height, width = size
    x, y, w, h = box
    region = np.zeros(size, np.uint8, order='F')
    region[y : y + h, x : x + w] = 1
    entry = {
        'id': number,
        'image_id': image_id,
        'category_id': 1,
        'iscrowd': 1,
        'keypoints': [0] * 51,
        'num_keypoints': 0,
        'bbox': [float(value) for value in box],
        'area': float(w * h),
    }
    if form == 'runs':  # column by column, the lengths of 0s and 1s in turn
        column = region.flatten(order='F')
        edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [1 - column[-1]]])))
        counts = np.diff(np.concatenate([[0], edges])).tolist()
        entry['segmentation'] = {'size': [height, width], 'counts': counts}
    elif form == 'compressed':
        code = rle_mask.encode(region)
        entry['segmentation'] = {'size': [height, width], 'counts': code['counts'].decode()}
    elif form == 'polygon':
        entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return entry


def draw_photo(size, people, rng, kind):
    """A photo of dots at people's joints; kind: 'jpg' or 'png' colour, 'grey', 'alpha', '16bit'."""
    photo = np.full((*size, 3), rng.integers(40, 90, 3), np.uint8)
    for joints in people:
        colour = rng.integers(120, 256, 3).tolist()
        for x, y, _ in joints:
            cv2.circle(photo, (int(x), int(y)), 2, colour, -1)
    if kind == 'grey':
        return photo[..., 0]
    if kind == 'alpha':
        return np.dstack([photo, np.full(size, 200, np.uint8)])
    return photo.astype(np.uint16) * 256 + 255 if kind == '16bit' else photo


@pytest.fixture
def make_coco(tmp_path):
    """make_coco(...): a small data set in the format of COCO, drawn into a folder of the test."""

    def make(
        name='coco',
        split='train2017',
        people=(1, 2),
        valid=(2, 0),
        size=(80, 100),
        crowd=None,
        kind='jpg',
        inside=False,
        first_id=900001,
    ):
        """The number of people in each training photo and in each photo of the validation split.

        split: names the files as COCO names those of train2014, val2017 and so on. crowd: the form
        of a crowd in the first photo (see crowd_entry), at its left edge. kind: of photo, see
        draw_photo. inside: the photos lie in the folder itself, not in one of the split's name.
        first_id: of the training photos; those of validation are the first of the published ids.
        Returns the folder's images, annotations, content, path(image_id), and settings for --set.
        """
        images = tmp_path / name / 'images'
        folder = images if inside else images / split
        folder.mkdir(parents=True)
        annotations = tmp_path / name / 'annotations' / f'person_keypoints_{split}.json'
        annotations.parent.mkdir()
        rng = np.random.default_rng(0)
        published = [int(line) for line in ref.VALID_IDS.read_text().split()]
        train_ids = list(range(first_id, first_id + len(people)))
        assert not set(train_ids) & set(published)
        ids = train_ids + published[: len(valid)]
        prefix = f'COCO_{split}_' if '2014' in split else ''
        suffix = 'jpg' if kind == 'jpg' else 'png'
        height, width = size
        records, entries = [], []
        for image_id, number in zip(ids, [*people, *valid], strict=True):
            joints = []
            for p in range(number):
                tall = height * rng.uniform(0.5, 0.9)
                room = width - 0.5 * tall
                left = room * (p + rng.random()) / number
                joints.append(stand(np.array([left, rng.uniform(0, height - tall), 0, 0])
                                    + [0, 0, 0.5 * tall, tall]))  # fmt: skip
            record = {'id': image_id, 'file_name': f'{prefix}{image_id:012d}.{suffix}'}
            records.append(record | {'height': height, 'width': width})
            photo = draw_photo(size, joints, rng, kind)
            cv2.imwrite(str(folder / record['file_name']), photo)
            for person in joints:
                entries.append(person_entry(len(entries) + 1, image_id, person))
        if crowd:
            box = (0, 0, width // 4, height)
            entries.append(crowd_entry(len(entries) + 1, ids[0], size, box, crowd))
        content = {
            'images': records,
            'annotations': entries,
            'categories': [{'id': 1, 'name': 'person'}],
        }
        annotations.write_text(json.dumps(content))
        return SimpleNamespace(
            images=images,
            annotations=annotations,
            content=content,
            train_ids=train_ids,
            valid_ids=ids[len(people) :],
            path=lambda image_id: folder / f'{prefix}{image_id:012d}.{suffix}',
            settings=[f'data.images={images}', f'data.annotations={annotations}'],
        )

    return make


@pytest.fixture
def run1(make_coco, configure, work):
    """exp/run1 with an untrained network that finds people in anything."""
    coco = make_coco(people=(1,), valid=(2, 0, 1))
    config = configure(*coco.settings, 'test.max_num_people=4')
    network = pose.make_network(config).network
    run = Run('run1')
    run.create(config | {'run': {'task': 'pose'}})
    with torch.no_grad():  # heatmaps about the threshold
        network.outs[0].conv.weight[:17] *= 5
        network.outs[0].conv.bias[:17] = torch.linspace(-0.1, 0.4, 17)
    run.save({'state_dict': network.state_dict()})
    run.save({'state_dict': network.state_dict()}, 'best')
    return coco, work / 'exp' / 'run1'


@pytest.fixture
def foreign_run(work, golden):
    """foreign_run(name): puts the published checkpoint's small likeness into exp/<name>/.

    Returns the settings that fit its network: such a folder has no config of its own.
    """

    def put(name):
        folder = work / 'exp' / name
        folder.mkdir(parents=True)
        shutil.copy(golden('checkpoint.pth.tar'), folder)
        sizes = json.loads(golden('checkpoint_network.json').read_text())
        return [f'model.{key}={value}' for key, value in sizes.items()]

    return put
