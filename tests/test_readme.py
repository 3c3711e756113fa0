"""README.md: its commands run, its tables say what the program says."""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import synthetic
from tests.faults import common

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
# In place of drawing 2,200 pictures.
FEW = ('data.drawn.pictures=[26,13]', 'data.drawn.size=96')
# Of another place than this test, or without an end.
ELSEWHERE = ('pip install -r requirements', 'python -m pytest', 'python -m utils.demo')
HAS_ONNX = all(map(importlib.util.find_spec, ('onnx', 'onnxscript', 'onnxruntime')))


def commands():
    """The commands of README's blocks, in their order."""
    lines = re.findall(r'^    (?:\w+=\w+ )?((?:python|torchrun|pip) .*)$', README, re.MULTILINE)
    parts = [part.strip() for line in lines for part in line.partition('  #')[0].split('&&')]
    parts = [p for p in parts if not p.startswith(ELSEWHERE) and (HAS_ONNX or '.onnx' not in p)]
    return list(dict.fromkeys(parts))


@pytest.fixture
def place(work, make_coco, golden):
    """A folder with all that README's commands name: COCO, photos, a clip, weights, own joints."""
    make_coco('work/data/coco', 'train2014')
    later = make_coco('later', 'train2017')
    shutil.move(later.images / 'train2017', work / 'data/coco/images/train2017')
    shutil.move(later.annotations, work / 'data/coco/annotations')
    records = [{key: r[key] for key in r} for r in later.content['images']]
    info = {'images': records, 'categories': later.content['categories']}
    (work / 'image_info_test-dev2017.json').write_text(json.dumps(info))
    shutil.copytree(work / 'data/coco/images/train2017', work / 'test2017')
    synthetic.make(work / 'five', (12, 4), size=96, joints='five')
    for split, name in zip(synthetic.SPLITS, ('train', 'val'), strict=True):
        file = work / f'five/annotations/person_keypoints_{split}.json'
        shutil.move(file, work / f'{name}.json')
        shutil.copytree(work / f'five/images/{split}', work / 'photos', dirs_exist_ok=True)
    photo = next((work / 'test2017').iterdir())
    shutil.copy(photo, work / 'a.jpg')
    (work / 'folder').mkdir()
    shutil.copy(photo, work / 'folder')
    clip = cv2.VideoWriter(str(work / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 25, (96, 64))
    for value in (0, 100, 200):
        clip.write(np.full((64, 96, 3), value, np.uint8))
    clip.release()
    shutil.copy(golden('checkpoint.pth.tar'), work)
    (work / 'models').mkdir()
    shutil.copy(ROOT / 'models' / 'small.pth.tar', work / 'models')
    return work


def made_small(command, tiny):
    """The words of a command, with settings that make it take no time."""
    words = shlex.split(command)
    small = [setting for setting in tiny if setting.startswith('test.')]
    if 'train.py' in words:
        # The network of --init is that of its weights.
        small = [s for s in tiny if s.startswith('train.') or '--init' not in words]
    if 'quickstart' in words:
        small += FEW
    return words + ['--set', *small] * ('train.py' in words or 'test.py' in words)


def run_here(words):
    """Runs `python ...` within this process, for it starts in no time; raises where it fails."""
    module = words[1] == '-m'
    sys.argv = words[2:] if module else [str(ROOT / words[1]), *words[2:]]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if module:
                runpy.run_module(words[2], run_name='__main__', alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        assert not end.code, f'{words}: exit code {end.code}\n{errors.getvalue()}'


def run_ranks(words):
    """Runs `torchrun ...` on two ranks of this machine, alone."""
    given = {'--nproc-per-node': '2', '--nnodes': '1',
             '--rdzv-endpoint': f'localhost:{common.free_port()}'}  # fmt: skip
    words = [given.get(option, word) for option, word in zip(['', *words], words, strict=False)]
    if 'train.py' in words:
        # A new run is refused where an earlier command of README left one.
        Path('exp', words[words.index('-e') + 1], 'checkpoint.pth.tar').unlink(missing_ok=True)
    script = next(i for i, word in enumerate(words) if word.endswith('.py'))
    words[script] = str(ROOT / words[script])
    done = subprocess.run([*common.TORCHRUN, *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, f'{words}\n{done.stdout}\n{done.stderr}'


def test_every_command_runs(place, tiny, monkeypatch):
    monkeypatch.setattr(sys, 'argv', sys.argv)
    found = commands()
    assert len(found) > 20
    for command in found:
        words = made_small(command, tiny)
        run_ranks(words) if words[0] == 'torchrun' else run_here(words)
    for made in (
        'exp/run1/person_keypoints_test-dev2017_run1_results.zip', 'exp/quickstart/out/clip.mp4',
        'out/tags/a.jpg', 'exp/copy/config.json', 'curves.png', 'samples/sheet-01.jpg',
    ):  # fmt: skip
        assert (place / made).is_file(), made
    assert len(json.loads((place / 'exp/mine/config.json').read_text())['data']['joints']) == 5
    # The lines of Python use the run `quickstart`, which is there now.
    code = re.search(r'(^    import cv2\n(?:(?:    .*)?\n)*)', README, re.MULTILINE)[1]
    names = {}
    exec(compile(re.sub('^    ', '', code, flags=re.MULTILINE), 'README.md', 'exec'), names)
    assert names['people'].shape[1:] == (17, 5) and names['transform'].shape == (2, 3)
    assert (place / 'drawn.jpg').is_file()


def test_errors_of_the_troubleshooting_table_are_the_programs():
    files = [path for path in sorted(ROOT.rglob('*.py')) if ROOT / 'tests' not in path.parents]
    sources = ''.join(path.read_text() for path in files)
    # A message over several lines of source is one.
    sources = re.sub(r'[\'"]\s*\n\s*f?[\'"]', '', sources)
    messages = re.findall(r'^\| `(?:error|warning): (.*?)` \|', README, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        for words in filter(None, (part.strip(' ()') for part in message.split('...'))):
            # In parentheses stand the system's own words.
            fixed = [part.strip() for part in re.split(r'exp/|--set|\(.*', words)]
            assert all(part in sources for part in fixed), words
