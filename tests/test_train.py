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
from train import Training, learning_rate, open_run
from utils.checkpoint import read_checkpoint, write_atomically
from utils.errors import UserError
from utils.run import Run


@pytest.fixture
def start(make_coco, work, tiny, monkeypatch):
    """start(name, ...): a Training of a new run (or with go_on of an old one) on four photos."""
    data = make_coco(people=(1, 2, 3, 1))

    def open_training(name, *settings, go_on=False):
        flag = '-c' if go_on else '-e'
        chosen = [*data.settings, *tiny, *settings] if not go_on else settings
        command = ['train.py', flag, name, *(['--set', *chosen] if chosen else [])]
        monkeypatch.setattr(sys, 'argv', command)
        return Training(*open_run(train.parse_args()))

    return open_training


def run_steps(training, count):
    """The first `count` steps that the training has to do, then a save."""
    batches = iter(training.loaders['train'])
    training.task.train()
    for _ in range(count):
        training.train_step(next(batches))
        training.step += 1
        training.samples += training.settings['batchsize']
    training.save()


def state_of(training):
    """Everything that training changes: parameters, buffers, optimizer, random state."""
    state = {
        'network': training.task.state_dict(),
        'optimizer': training.optimizer.state_dict(),
        'random': torch.get_rng_state(),
        'numpy': np.random.get_state()[1].tolist(),
    }
    return copy.deepcopy(state)


def test_ten_steps_equal_five_resume_and_five(start):
    settings = ['model.bn=True', 'train.train_iters=4', 'train.epochs=3']
    whole = start('whole', *settings)
    run_steps(whole, 10)
    half = start('half', *settings)
    run_steps(half, 5)
    torch.manual_seed(99)  # a new process starts with another random state
    resumed = start('half', go_on=True)
    assert resumed.step == 5
    run_steps(resumed, 5)
    a, b = (read_checkpoint(t.run.checkpoint()) for t in (whole, resumed))
    assert a['step'] == b['step'] == 10
    for key in ('state_dict', 'optimizer', 'random', 'samples'):
        assert same(a[key], b[key]), key
    fresh = start('other', *settings, 'train.seed=1')
    run_steps(fresh, 10)
    other = read_checkpoint(fresh.run.checkpoint())
    assert not same(a['state_dict'], other['state_dict'])  # the comparison can fail


def test_validation_changes_nothing_and_computes_the_losses(start):
    training = start('run', 'model.bn=True', 'train.augment=False')
    run_steps(training, 2)
    before = state_of(training)
    first, second = training.validate(), training.validate()
    training.measure_ap()
    assert same(before, state_of(training))
    assert torch.equal(first, second)
    training.task.eval()
    batches = list(training.loaders['valid'])
    with torch.no_grad():
        means = [training.losses_of(b)['detection'].mean().item() for b in batches]
    assert training.named(first)['detection'] == pytest.approx(np.mean(means))
    run_steps(training, 1)
    assert not same(before, state_of(training))


def test_rate_drops_at_its_step_with_and_without_resume(start):
    settings = ['train.decay_iters=[3,3]', 'train.train_iters=2', 'train.epochs=3']
    training = start('run', *settings)
    rates = []
    batches = iter(training.loaders['train'])
    for _ in range(5):
        training.train_step(next(batches))
        training.step += 1
        rates.append(training.optimizer.param_groups[0]['lr'])
    assert rates == [2e-4] * 3 + [1e-5] * 2
    for done, expected in ((2, 2e-4), (3, 1e-5), (4, 1e-5)):
        name = f'stopped-{done}'
        run_steps(start(name, *settings), done)
        resumed = start(name, go_on=True)
        resumed.train_step(next(iter(resumed.loaders['train'])))
        assert resumed.optimizer.param_groups[0]['lr'] == expected


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
    start('run', *settings).loop()
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


def test_best_is_the_highest_ap_and_before_any_the_lowest_loss(start):
    training = start('run')
    assert training.note_best({}, 3.0)
    assert not training.note_best({}, 4.0)
    assert training.note_best({}, 2.0)
    assert training.note_best({'AP': 0.1}, 9.0)
    assert not training.note_best({}, 1.0)  # a loss does not beat an AP
    assert not training.note_best({'AP': 0.1}, 1.0)
    assert training.note_best({'AP': 0.2}, 9.0)


def test_a_loss_that_is_not_finite_stops_with_names_step_and_images(start):
    training = start('run')
    training.save()
    before = training.run.checkpoint().read_bytes()
    with torch.no_grad():
        training.task.network.outs[0].conv.bias.fill_(float('nan'))
    with pytest.raises(UserError) as error:
        training.loop()
    text = str(error.value)
    assert 'step 1:' in text and 'detection nan' in text and 'images [9000' in text
    assert training.run.checkpoint().read_bytes() == before


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
    training = start('run')

    def interrupted():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError('validation went on')

    monkeypatch.setattr(training, 'validate', interrupted)
    with pytest.raises(train.Interrupted):
        training.loop()
    training.save()
    resumed = start('run', go_on=True)
    assert (resumed.step, resumed.epoch) == (3, 0)
    resumed.loop()  # no step is left: only the validation is done again
    assert (resumed.step, resumed.epoch) == (3, 1)


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
        run.add_metrics({'epoch': epoch, 'value': value})
    lines = (run.folder / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {'epoch': 1, 'value': 0},
        {'epoch': 2, 'value': 1},
    ]


def test_settings_are_laid_on_the_runs_own_config(start, work):
    run_steps(start('run', 'train.learning_rate=3e-3'), 1)
    start('run', 'train.epochs=7', go_on=True)
    config = json.loads((work / 'exp' / 'run' / 'config.json').read_text())
    assert config['train']['epochs'] == 7
    assert config['train']['learning_rate'] == 3e-3
    assert config['model']['inp_dim'] == 8
