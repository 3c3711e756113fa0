"""Weights that are part of the repository: found where exp/ has no run of their name."""

import json
import shutil
import sys

import pytest

from test import load
from utils import run as run_module


@pytest.fixture
def included(run1, call_script, monkeypatch, work):
    """A repository whose models/ has the weights of run1 as `tiny`; the folder exp/ is empty."""
    coco, folder = run1
    (work / 'models').mkdir()
    arguments = ['-m', 'utils.convert', 'exp/run1', 'models/tiny.pth.tar', '--bfloat16']
    monkeypatch.setattr(sys, 'argv', arguments)
    done = call_script('utils/convert.py', *arguments[2:])
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    monkeypatch.setattr(run_module, 'REPOSITORY', work)
    return coco, work


def test_they_are_loaded_and_tested_as_a_run(included, call_script):
    coco, work = included
    assert load('tiny').config['model']['inp_dim'] == 8
    done = call_script('test.py', '-c', 'tiny', '--set', *coco.settings)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((work / 'exp/tiny/dt.json').read_text())) > 3
    # The folder is there now, but it has no weights of its own.
    assert call_script('test.py', '-c', 'tiny', '--set', *coco.settings).returncode == 0


def test_a_run_of_that_name_comes_first(included, call_script, tiny):
    coco, work = included
    done = call_script('train.py', '-e', 'tiny', '--set', *coco.settings, *tiny)
    assert done.returncode == 0, done.stderr
    func = load('tiny')
    bias = func.network.outs[0].conv.bias
    assert not (bias[:17].diff() > 0).all()  # as those of run1 are


def test_a_training_starts_from_them(included, call_script, tiny):
    coco, work = included
    settings = [setting for setting in tiny if not setting.startswith('model.')]
    done = call_script(
        'train.py', '-e', 'new', '--init', 'tiny', '--set', *coco.settings, *settings
    )
    assert done.returncode == 0, done.stderr
    assert 'starts with the weights of' in done.stdout


def test_the_small_network_finds_people_in_photos(shared, work, call_script, root, monkeypatch):
    """On 24 photos of COCO at half size that it never saw."""
    monkeypatch.setattr(run_module, 'REPOSITORY', root)
    folder = shared / 'coco_real'
    annotations = folder / 'annotations/person_keypoints_dev_large.json'
    if not annotations.is_file():
        pytest.skip(f'needs {annotations}')
    done = call_script('test.py', '-c', 'small', '--limit', 24, '--vis', 0,
                       '--annotations', annotations, '--images', folder / 'images')  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((work / 'exp/small/results.json').read_text())
    (figures,) = results.values()
    assert figures['AP50'] > 0.4
