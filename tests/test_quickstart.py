"""The quickstart task, much smaller still: it draws its data, trains, tests and shows."""

import json

import cv2
import pytest

from data.coco_pose import dp
from task import pose, quickstart

SMALL = ('data.drawn.pictures=[26,13]', 'data.drawn.size=96', 'train.epochs=1')


def test_it_is_the_task_pose_with_other_numbers():
    assert quickstart.make_network is pose.make_network
    for section, values in pose.__config__.items():
        if isinstance(values, dict):
            assert values.keys() <= quickstart.__config__[section].keys()
    assert quickstart.__config__['train']['input_res'] < pose.__config__['train']['input_res']


def test_first_use_draws_then_trains_tests_and_shows(work, tiny, call_script, monkeypatch):
    seen = []
    init = dp.init
    monkeypatch.setattr(dp, 'init', lambda *args: seen.append(args) or init(*args))
    done = call_script('train.py', '-t', 'quickstart', '-e', 'q', '--set', *tiny, *SMALL)
    assert done.returncode == 0, done.stderr
    assert 'drawing 39 pictures into data/cache/' in done.stdout
    assert len(seen) == 1  # COCO's own provider did the work
    cached = list((work / 'data' / 'cache').iterdir())
    assert len(cached) == 1
    done = call_script('test.py', '-c', 'q', '-m', 'single', '--vis', 4)
    assert done.returncode == 0, done.stderr
    assert 'Average Precision' in done.stdout and 'drawing' not in done.stdout
    assert list((work / 'data' / 'cache').iterdir()) == cached
    pictures = sorted((work / 'exp' / 'q' / 'vis').glob('*.jpg'))
    assert len(pictures) == 4 and pictures[0].name.startswith('01-worst')
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    assert width > height  # two pictures side by side
    results = json.loads((work / 'exp' / 'q' / 'results.json').read_text())
    assert results['single']['photos'] == 13


@pytest.mark.parametrize('changed', ['data.drawn.seed=1', 'data.drawn.pictures=[13,13]'])
def test_other_settings_draw_another_set(work, tiny, call_script, changed):
    call_script('train.py', '-t', 'quickstart', '-e', 'a', '--set', *tiny, *SMALL)
    done = call_script('train.py', '-t', 'quickstart', '-e', 'b', '--set', *tiny, *SMALL, changed)
    assert done.returncode == 0, done.stderr
    assert len(list((work / 'data' / 'cache').iterdir())) == 2
