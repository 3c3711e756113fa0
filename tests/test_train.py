"""The training loop: what a run leaves behind, and that nothing is lost when it stops."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import train
from tests.faults.common import same
from train import learning_rate
from utils.checkpoint import read_checkpoint, write_atomically
from utils.metrics import add_metrics
from utils.run import Run
from utils.stop import Stopper


class Training:
    """What train.py prepares for a run, and how tests use it."""

    def __init__(self, args):
        self.model, self.loaders, self.state, self.report = train.prepare(args)
        self.settings = self.state.config['train']

    def run_steps(self, count):
        """The first `count` steps that there are to do, then a save; the learning rates used."""
        batches = iter(self.loaders['train'])
        self.model.train()
        rates, optimizer = [], self.state.optimizer
        for _ in range(count):
            lr = learning_rate(self.settings, self.state.step)
            train.train_step(
                self.model,
                optimizer,
                self.state.scaler,
                next(batches),
                lr,
                self.settings,
                torch.float32,
            )
            self.state.advance(self.settings['batchsize'], applied=True)
            rates.append(optimizer.param_groups[0]['lr'])
        train.save(self.state, self.report)
        return rates

    def run(self):
        train.train(self.model, self.loaders, self.state, self.report, Stopper())

    def validate(self):
        loader = self.loaders['valid']
        return train.validate(self.model, loader, self.settings, torch.float32, self.report)

    def saved(self):
        """What its checkpoint holds."""
        return read_checkpoint(self.report.run.checkpoint())

    def everything(self):
        """All that training changes: parameters, buffers, optimizer, random state."""
        state = {
            'network': self.model.state_dict(),
            'optimizer': self.state.optimizer.state_dict(),
            'random': torch.get_rng_state(),
            'numpy': np.random.get_state()[1].tolist(),
        }
        return copy.deepcopy(state)


@pytest.fixture
def start(make_coco, work, tiny, monkeypatch):
    """start(name, ...): a Training of a new run (or with go_on of an old one) on four photos."""
    data = make_coco(people=(1, 2, 3, 1))

    def open_training(name, *settings, go_on=False):
        flag = '-c' if go_on else '-e'
        chosen = [*data.settings, *tiny, *settings] if not go_on else settings
        command = ['train.py', flag, name, *(['--set', *chosen] if chosen else [])]
        monkeypatch.setattr(sys, 'argv', command)
        return Training(train.parse_args())

    return open_training


def whole_and_resumed(start, half, *settings):
    """Trainings of two equal runs after 2 * half steps, one of them resumed in its middle."""
    whole = start('whole', *settings)
    whole.run_steps(2 * half)
    start('half', *settings).run_steps(half)
    torch.manual_seed(99)  # a new process starts with another random state
    resumed = start('half', go_on=True)
    assert resumed.state.step == half
    resumed.run_steps(half)
    return whole, resumed


def test_ten_steps_equal_five_resume_and_five(start):
    settings = ['model.bn=True', 'train.train_iters=4', 'train.epochs=3']
    a, b = (training.saved() for training in whole_and_resumed(start, 5, *settings))
    assert a['step'] == b['step'] == 10
    for key in ('state_dict', 'optimizer', 'random', 'samples'):
        assert same(a[key], b[key]), key
    fresh = start('other', *settings, 'train.seed=1')
    fresh.run_steps(10)
    assert not same(a['state_dict'], fresh.saved()['state_dict'])  # the comparison can fail


def test_validation_changes_nothing_and_computes_the_losses(start):
    training = start('run', 'model.bn=True', 'train.augment=False')
    training.run_steps(2)
    before = training.everything()
    first, second = training.validate(), training.validate()
    state = training.state
    train.measure_ap(state.network, state.config, training.loaders['valid_split'])
    assert same(before, training.everything())
    assert torch.equal(first, second)
    training.model.eval()
    means = []
    with torch.no_grad():
        for batch in training.loaders['valid']:
            (inputs,) = train.split(batch, 1, training.model)
            losses = training.model(**inputs, dtype=torch.float32)
            means.append(losses['detection'].mean().item())
    assert state.named(first)['detection'] == pytest.approx(np.mean(means))
    training.run_steps(1)
    assert not same(before, training.everything())


def test_rate_drops_at_its_step_with_and_without_resume(start):
    settings = ['train.decay_iters=[3,3]', 'train.train_iters=2', 'train.epochs=3']
    assert start('run', *settings).run_steps(5) == [2e-4] * 3 + [1e-5] * 2
    for done, expected in ((2, 2e-4), (3, 1e-5), (4, 1e-5)):
        name = f'stopped-{done}'
        start(name, *settings).run_steps(done)
        assert start(name, go_on=True).run_steps(1) == [expected]


def test_rate_rises_and_falls_in_straight_lines():
    settings = {
        'learning_rate': 1.0,
        'warmup_iters': 4,
        'decay_iters': [10, 20],
        'decay_rate': 0.0,
    }
    rates = [learning_rate(settings, step) for step in (0, 3, 4, 10, 15, 20, 99)]
    assert rates == [0.25, 1, 1, 1, 0.5, 0, 0]


def test_a_run_leaves_config_log_metrics_and_checkpoints(start, work, call_script):
    settings = ['train.epochs=2', 'train.eval_epochs=2', 'train.learning_rate=1e-3']
    start('run', *settings).run()
    folder = work / 'exp' / 'run'
    config = json.loads((folder / 'config.json').read_text())
    assert config['train']['learning_rate'] == 1e-3
    assert 'train.py -e run' in config['run']['commands'][0]['command']
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in lines] == [1, 2]
    assert 'AP' in lines[1] and 'AP' not in lines[0]
    assert lines[1]['step'] == 6 and lines[1]['images'] == 12
    assert 'epoch 2/2 | detection' in (folder / 'log').read_text()
    checkpoint = read_checkpoint(folder / 'checkpoint.pth.tar')
    assert all(not key.startswith('module.') for key in checkpoint['state_dict'])
    # Continuing adds epochs, and is recorded with its settings.
    done = call_script('train.py', '-c', 'run', '--set', 'train.epochs=3')
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / 'config.json').read_text())
    assert config['train']['epochs'] == 3 and len(config['run']['commands']) == 2
    assert len((folder / 'metrics.jsonl').read_text().splitlines()) == 3
    assert [p.name for p in (work / 'exp').iterdir()] == ['run']


def test_best_is_the_highest_ap_and_in_a_run_without_the_lowest_loss(start):
    state = start('run').state
    state.config['train']['eval_epochs'] = 10
    assert not state.is_best({}, 3.5)  # an AP will come
    state.config['train']['eval_epochs'] = 0
    assert state.is_best({}, 3.0)
    assert not state.is_best({}, 4.0)
    assert state.is_best({}, 2.0)
    assert state.is_best({'AP': 0.1}, 9.0)
    assert not state.is_best({}, 1.0)  # a loss does not beat an AP
    assert not state.is_best({'AP': 0.0}, 1.0)
    assert state.is_best({'AP': 0.1}, 9.5)  # of equal ones the later, which has trained for longer
    assert state.is_best({'AP': 0.2}, 9.0)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number, make_coco, work, tiny, root):
    data = make_coco(people=(1, 2))
    command = [sys.executable, root / 'train.py', '-e', 'run', '--set', *data.settings, *tiny]
    command += ['train.train_iters=1000000', 'train.num_workers=1', 'train.log_iters=1']
    process = subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if 'CPU' in line or 'GPU' in line:  # the last line before the first step
            break
    time.sleep(2)
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the workers as well
    output, _ = process.communicate(timeout=40)
    # After Ctrl-C nothing should follow; a scheduler got what it asked for.
    assert process.returncode == (130 if number == signal.SIGINT else 0)
    assert "continue with 'python train.py -c run'" in output
    checkpoint = read_checkpoint(work / 'exp' / 'run' / 'checkpoint.pth.tar')
    assert f'saved after step {checkpoint["step"]};' in output
    assert checkpoint['step'] > 0 and checkpoint['epoch'] == 0
    assert checkpoint['sums']['losses'].sum() > 0  # the epoch's figures go on, too


def test_a_signal_during_validation_loses_nothing(start, monkeypatch):
    def interrupted(*args):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError('validation went on')

    training = start('run')
    with monkeypatch.context() as patched:
        patched.setattr(train, 'validate', interrupted)
        with pytest.raises(train.Interrupted):
            training.run()
    train.save(training.state, training.report)
    resumed = start('run', go_on=True)
    assert (resumed.state.step, resumed.state.epoch) == (3, 0)
    resumed.run()  # no step is left: only the validation is done again
    assert (resumed.state.step, resumed.state.epoch) == (3, 1)


@pytest.mark.parametrize('moment', ['writing', 'renaming'])
def test_kill_in_the_middle_of_a_save_leaves_a_loadable_checkpoint(moment, tmp_path, root):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(root)!r})
import torch
from utils.run import Run

def half_a_save(state, stream):
    stream.write(bytes(1000))
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

run = Run('run')
run.folder.mkdir(parents=True)
run.save({{'state_dict': {{'w': torch.ones(3)}}, 'step': 1}})
if sys.argv[1] == 'writing':
    torch.save = half_a_save
else:
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
run.save({{'state_dict': {{'w': torch.zeros(3)}}, 'step': 2}})
"""
    killed = subprocess.run([sys.executable, '-c', code, moment], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / 'exp' / 'run'
    assert (folder / 'checkpoint.pth.tar.part').exists()  # it did die in the middle
    checkpoint = read_checkpoint(folder / 'checkpoint.pth.tar')
    assert checkpoint['step'] == 1 and checkpoint['state_dict']['w'].sum() == 3


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    def fail(stream):
        stream.write(b'half')
        raise OSError('no space')

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == 'old'


def test_metrics_of_an_epoch_done_twice_stand_once(work):
    run = Run('run')
    run.folder.mkdir(parents=True)
    for epoch, value in ((1, 0), (2, 0), (2, 1)):
        add_metrics(run.metrics_path, {'epoch': epoch, 'value': value})
    lines = (run.folder / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {'epoch': 1, 'value': 0},
        {'epoch': 2, 'value': 1},
    ]


def test_settings_are_laid_on_the_runs_own_config(start, work):
    start('run', 'train.learning_rate=3e-3').run_steps(1)
    start('run', 'train.epochs=7', go_on=True)
    config = json.loads((work / 'exp' / 'run' / 'config.json').read_text())
    assert config['train']['epochs'] == 7
    assert config['train']['learning_rate'] == 3e-3
    assert config['model']['inp_dim'] == 8
