"""Systems other than Linux with a GPU, simulated where this is one."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from data.coco_pose import ref
from utils.device import choose_device, choose_precision, describe_device, spread
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
# What every Python process does first, workers included.
START = """
import multiprocessing, os, signal
for module, name in {missing}:
    delattr({{'os': os, 'signal': signal}}[module], name)
multiprocessing.set_start_method('spawn', force=True)
"""
MACOS = [('os', 'sched_getaffinity')]
WINDOWS = [*MACOS, ('os', 'nice'), ('signal', 'alarm'), ('signal', 'SIGALRM')]


@pytest.mark.skipif(sys.platform != 'linux', reason='simulates other systems')
@pytest.mark.parametrize('missing', [WINDOWS, MACOS], ids=['Windows', 'macOS'])
def test_workers_load_photos_under_spawn(make_coco, tiny, run_script, work, monkeypatch, missing):
    (work / 'start').mkdir()
    (work / 'start' / 'sitecustomize.py').write_text(START.format(missing=missing))
    monkeypatch.setenv('PYTHONPATH', str(work / 'start'), prepend=os.pathsep)
    data = make_coco(people=(1, 2))
    settings = [*data.settings, *tiny, 'train.train_iters=2', 'train.num_workers=1',
                'train.eval_epochs=1', 'test.num_workers=1']  # fmt: skip
    done = run_script('train.py', '-e', 'run1', '--set', *settings, cwd=work)
    assert done.returncode == 0, done.stderr
    assert 'epoch 1/1' in done.stdout and 'AP' in done.stdout.split('epoch 1/1')[1]
    assert 'Traceback' not in done.stderr


def test_the_device_is_the_one_that_is_set(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    types = [choose_device({'device': name}).type for name in ('auto', 'cpu', 'mps')]
    assert types == ['cpu', 'cpu', 'mps']
    assert choose_precision('auto', torch.device('mps'))[0] == torch.float32
    with pytest.raises(UserError, match='device=cuda: .* only: cpu, mps'):
        choose_device({'device': 'cuda'})
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    task = torch.nn.Linear(1, 1)
    assert spread(task, torch.device('cpu')) is task


def test_how_cuda_computes_is_set_and_said(monkeypatch, request):
    """On a GPU that is not there: what is asked of PyTorch."""
    gpu = {
        'is_available': True, 'device_count': 2, 'set_device': None,
        'get_device_name': 'Card', 'get_device_capability': (7, 5),
    }  # fmt: skip
    for name, value in gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    backends_before = [
        (place, name, getattr(place, name))
        for place, name in (*((b, 'allow_tf32') for b in backends), (backends[1], 'benchmark'))
    ]
    request.addfinalizer(lambda: [setattr(*before) for before in backends_before])
    for settings in ({'tf32': True}, {'tf32': False, 'square': False}):
        device = choose_device({'device': 'auto'} | settings)
        assert device == torch.device('cuda', 0)
        assert {backend.allow_tf32 for backend in backends} == {settings['tf32']}
        assert torch.backends.cudnn.benchmark == ('square' not in settings)  # sizes are fixed
        text = describe_device(device, settings)
        assert text == f'2 x Card, {"" if settings["tf32"] else "no "}TF32'
    assert choose_precision('auto', device) == (
        torch.float16, 'fp16: this GPU is from before the Ampere generation'
    )  # fmt: skip
    # Each rank sees one GPU alone, or all of them.
    monkeypatch.setattr('utils.dist.local_rank', lambda: 1)
    assert choose_device({'device': 'cuda', 'tf32': True}).index == 1
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert choose_device({'device': 'cuda', 'tf32': True}).index == 0


@pytest.mark.parametrize('script, key', [('train.py', 'train'), ('test.py', 'test')])
def test_a_device_that_is_not_there(make_coco, tiny, call_script, work, script, key):
    data = make_coco()
    if key == 'test':
        assert call_script('train.py', '--set', *data.settings, *tiny).returncode == 0
    given = [*data.settings, *tiny] if key == 'train' else []
    missing = 'mps' if not torch.backends.mps.is_available() else 'cuda'
    done = call_script(script, '--set', *given, f'{key}.device={missing}')
    assert done.returncode == 2 and f'device={missing}' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = call_script(script, '--set', *given, f'{key}.device=tpu')
    assert done.returncode == 2 and 'expected one of auto, cpu, cuda, mps' in done.stderr


# --- encodings ---


def test_every_text_file_is_utf_8():
    """Each open, read_text and write_text of the program names the encoding, or is of bytes."""
    paths = [ROOT / 'train.py', ROOT / 'test.py']
    paths += [
        p for room in ('data', 'models', 'task', 'utils') for p in (ROOT / room).rglob('*.py')
    ]
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) == 'Image.open':
                continue
            name = ast.unparse(node.func).rpartition('.')[2]
            call = ast.unparse(node)
            binary = any(isinstance(a, ast.Constant) and 'b' in str(a.value) for a in node.args[1:])
            text = any(word.arg in ('text', 'universal_newlines') for word in node.keywords)
            if text or name in ('open', 'read_text', 'write_text', 'fdopen'):
                found.append(call)
                assert binary or 'utf-8' in call or "'r+b'" in call, f'{path.name}: {call}'
    assert len(found) > 10


def test_a_training_on_names_in_other_alphabets(make_coco, tiny, run_script, work, monkeypatch):
    """In the locale C, where text files and the terminal would be ASCII."""
    data = make_coco(people=(1, 2))
    content = json.loads(data.annotations.read_text('utf-8'))
    greek = '\u03ba\u03b5\u03c6\u03ac\u03bb\u03b9'
    keypoints = [f'{name}_{greek}' for name in ref.COCO.names]
    content['categories'] = [{'id': 1, 'name': 'person', 'keypoints': keypoints}]
    data.annotations.write_text(json.dumps(content, ensure_ascii=False), 'utf-8')
    monkeypatch.setenv('LC_ALL', 'C')
    monkeypatch.setenv('PYTHONUTF8', '0')
    settings = [*data.settings, f'data.valid_annotations={data.annotations}', *tiny]
    done = run_script('train.py', '-e', 'run1', '--set', *settings, cwd=work)
    assert done.returncode == 0, done.stderr
    assert greek in (work / 'exp/run1/log').read_text('utf-8')
    for arguments in (
        ['test.py', '-c', 'run1'],
        ['train.py', '-c', 'run1', '--set', 'train.epochs=2'],
    ):
        done = run_script(*arguments, cwd=work)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('script', ['train.py', 'test.py', 'data/browse.py', 'data/mpii.py',
                                    'utils/plot.py', 'utils/convert.py'])  # fmt: skip
def test_a_library_that_opencv_lacks_is_named(run_script, work, monkeypatch, script):
    """As on servers and in small containers."""
    cause = 'libGL.so.1: cannot open shared object file: No such file or directory'
    (work / 'cv2.py').write_text(f'raise ImportError({cause!r})')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(work), str(ROOT)]))
    done = run_script(script, cwd=work)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith('error: OpenCV cannot be loaded (libGL.so.1')
    assert 'libgl1' in line and 'opencv-python-headless' in line
