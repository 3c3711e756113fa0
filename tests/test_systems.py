"""Systems other than Linux with a GPU, simulated where this is one."""

import os
import sys

import pytest
import torch

from utils.device import choose_device, choose_precision, spread
from utils.errors import UserError

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
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
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
    assert [choose_device(name).type for name in ('auto', 'cpu', 'mps')] == ['cpu', 'cpu', 'mps']
    assert choose_precision('auto', torch.device('mps'))[0] == torch.float32
    with pytest.raises(UserError, match='device=cuda: .* only: cpu, mps'):
        choose_device('cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    task = torch.nn.Linear(1, 1)
    assert spread(task, torch.device('cpu')) is task


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
