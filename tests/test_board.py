"""TensorBoard's events of a run: losses of every stack, each step once, pictures, full disks."""

import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.board import Board


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={'images': 0})
    found.Reload()
    return found


def values(found, name):
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(name)]


def sums(steps, first, second):
    return {'steps': steps, 'losses': steps * torch.tensor([[first, second]]).double()}


METRICS = {'step': 4, 'images_per_second': 9.0, 'data_wait': 0.1, 'skipped': 0, 'objective': 1.0,
           'valid_objective': 2.0, 'AP': 0.5}  # fmt: skip


def test_losses_since_the_last_call_raw_and_weighted_by_stack(tmp_path):
    board = Board(tmp_path, {'push': 0.5}, 0)
    board.progress(2, sums(2, 4.0, 6.0), 0.1)
    board.progress(4, sums(4, 3.0, 6.0), 0.1)  # the two steps since then: 2 and 6
    board.progress(4, sums(4, 3.0, 6.0), 0.1)  # no step since then
    board.epoch(METRICS, torch.tensor([[7.0, 8.0]]), {})
    board.progress(6, sums(2, 1.0, 1.0), 0.01)  # another epoch
    found = events(tmp_path)
    assert values(found, 'push/train, stack 1') == [(2, 4), (4, 2), (6, 1)]
    assert values(found, 'push, weighted/train, stack 2') == [(2, 3), (4, 3), (6, 0.5)]
    assert values(found, 'push/validation, stack 2') == [(4, 8)]
    assert values(found, 'training/learning rate')[-1] == (6, 0.01)
    assert values(found, 'validation/AP') == [(4, 0.5)]


def test_a_resume_hides_what_a_killed_run_did_beyond_its_checkpoint(tmp_path):
    killed = Board(tmp_path, {'push': 1.0}, 0)
    for step in (2, 4, 6):
        killed.progress(step, sums(step, 1.0, 1.0), 0.1)
    time.sleep(1.1)  # files are read in the order of their seconds
    Board(tmp_path, {'push': 1.0}, 4).progress(6, sums(2, 5.0, 5.0), 0.1)
    assert values(events(tmp_path), 'push/train, stack 1') == [(2, 1), (6, 5)]


def test_a_run_writes_losses_speed_ap_and_predictions(make_coco, work, tiny, call_script):
    coco = make_coco(valid=(2, 1, 0))
    settings = [*coco.settings, *tiny, 'model.nstack=2', 'train.epochs=2', 'train.eval_epochs=2']
    done = call_script('train.py', '-e', 'run', '--set', *settings)
    assert done.returncode == 0, done.stderr
    found = events(work / 'exp/run/events')
    names = found.Tags()['scalars']
    for loss in ('detection', 'push', 'pull'):
        for stack in (1, 2):
            assert f'{loss}/train, stack {stack}' in names
            assert f'{loss}, weighted/validation, stack {stack}' in names
    assert [step for step, _ in values(found, 'detection/train, stack 2')] == [3, 6]
    assert [step for step, _ in values(found, 'validation/AP')] == [6]
    assert {'training/images per second', 'training/share of time waiting for data'} < set(names)
    pictures = found.Tags()['images']
    assert pictures == [f'predictions/{image_id}' for image_id in coco.valid_ids]
    image = found.Images(pictures[0])[0]
    assert image.width > 640 and image.height > 640
