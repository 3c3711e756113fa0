"""The drawn data set: truthful, in the format of COCO, the same for the same seed."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as masks
from pycocotools.coco import COCO

from data import synthetic
from data.outlines import run_lengths
from task import quickstart
from utils import dist
from utils.config import apply_settings

SPLITS = ('train2017', 'val2017')


def file_of(folder, split):
    return folder / 'annotations' / f'person_keypoints_{split}.json'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawn') / 'set'
    synthetic.make(folder, (90, 30), size=160, seed=3)
    return folder


@pytest.fixture(scope='module')
def coco(folder):
    return COCO(file_of(folder, 'train2017'))


@pytest.fixture(scope='module')
def people(coco):
    return [a for a in coco.anns.values() if not a['iscrowd']]


def test_the_seed_decides_alone(tmp_path, monkeypatch):
    for name, seed, cores in (('one', 1, 1), ('again', 1, 3), ('other', 2, 2)):
        monkeypatch.setattr(synthetic.os, 'cpu_count', lambda cores=cores: cores)
        synthetic.make(tmp_path / name, (40, 3), size=96, seed=seed)
    one, again, other = (
        [file_of(tmp_path / name, split).read_bytes() for split in SPLITS]
        for name in ('one', 'again', 'other')
    )
    assert one == again
    first, second = (tmp_path / name / 'images/val2017' for name in ('one', 'again'))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    anns = [json.loads(text[0])['annotations'] for text in (one, other)]
    assert anns[0] != anns[1]


def test_pictures_are_as_the_annotations_say(folder):
    seen = set()
    for split, number in zip(SPLITS, (90, 30), strict=True):
        content = json.loads(file_of(folder, split).read_text())
        assert len(content['images']) == number
        for image in content['images']:
            pixels = cv2.imread(str(folder / 'images' / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert max(pixels.shape) == 160 and pixels.std() > 5
        ids = [image['id'] for image in content['images']]
        assert len(set(ids)) == number and not seen & set(ids)
        seen |= set(ids)
        assert content['categories'][0]['keypoints'][15] == 'left_ankle'
        ids = [annotation['id'] for annotation in content['annotations']]
        assert len(set(ids)) == len(ids) > number
    assert sorted(path.name for path in folder.iterdir()) == ['annotations', 'images']
    assert [path.name for path in folder.parent.iterdir()] == ['set']


def test_area_and_box_are_those_of_the_segmentation(coco, people):
    ratios = []
    for person in people:
        mask = coco.annToMask(person)  # (height, width)
        ratios.append(mask.sum() / person['area'])
        box = cv2.boundingRect(mask)
        assert np.abs(np.subtract(box, person['bbox'])).max() <= 2
    assert np.mean(ratios) == pytest.approx(1, abs=0.025)
    assert min(ratios) > 0.9 and max(ratios) < 1.1
    filled = np.mean([p['area'] / (p['bbox'][2] * p['bbox'][3]) for p in people])
    assert 0.3 < filled < 0.55  # limbs as thick as those of people


def test_joints_lie_in_the_picture_and_seen_ones_on_the_person(coco, people):
    on = []
    for person in people:
        image, mask = coco.imgs[person['image_id']], coco.annToMask(person)
        joints = np.array(person['keypoints']).reshape(17, 3)
        labelled = joints[joints[:, 2] > 0]
        assert (joints[joints[:, 2] == 0] == 0).all() and set(joints[:, 2]) <= {0, 1, 2}
        assert person['num_keypoints'] == len(labelled) >= 6
        assert (labelled[:, :2] >= 0).all()
        assert (labelled[:, :2] < (image['width'], image['height'])).all()
        for x, y, _ in joints[joints[:, 2] == 2]:
            on.append(mask[int(y), int(x)])
    assert np.mean(on) > 0.98
    values = np.concatenate([person['keypoints'][2::3] for person in people])
    assert 0.08 < (values == 1).mean() < 0.35 and (values == 2).mean() > 0.5


def test_hidden_joints_are_covered_by_somebody_or_something():
    """Of two people in a picture, a hidden wrist lies on the other one or on the own body."""
    rng, own, others = np.random.default_rng(8), 0, 0
    for _ in range(12):
        image, anns = synthetic.draw_picture(rng, 128, (2, 3))
        people = [a for a in anns if not a['iscrowd']]
        height, width = image.shape[:2]
        decoded = [
            masks.decode(masks.merge(masks.frPyObjects(a['segmentation'], height, width)))
            for a in people
        ]
        for person, mask in zip(people, decoded, strict=True):
            for x, y, v in np.array(person['keypoints']).reshape(17, 3)[5:]:
                if v == 1:
                    cover = sum(int(other[int(y), int(x)]) for other in decoded)
                    own, others = own + mask[int(y), int(x)], others + cover
    assert own > 5 and others > own + 5


def test_crowds_decode_and_some_pictures_show_nobody(coco, folder):
    crowds = [a for a in coco.anns.values() if a['iscrowd']]
    assert crowds
    for crowd in crowds:
        image = coco.imgs[crowd['image_id']]
        assert crowd['segmentation']['size'] == [image['height'], image['width']]
        mask = coco.annToMask(crowd)
        assert mask.sum() == crowd['area'] and list(cv2.boundingRect(mask)) == crowd['bbox']
        assert crowd['num_keypoints'] == 0 and not any(crowd['keypoints'])
    for split in SPLITS:
        content = json.loads(file_of(folder, split).read_text())
        shown = {annotation['image_id'] for annotation in content['annotations']}
        assert 0 < len(content['images']) - len(shown) <= 0.1 * len(content['images'])


def test_people_overlap(coco, people):
    assert coco.dataset['info']['overlapping'] > 0.4
    meet = 0
    for person in people:
        x, y, w, h = person['bbox']
        for other in people:
            left, top, wide, high = other['bbox']
            if other is not person and other['image_id'] == person['image_id']:
                if x < left + wide and left < x + w and y < top + high and top < y + h:
                    meet += 1
                    break
    assert meet > len(people) / 3


def test_left_is_the_left_of_the_person(people):
    """On the right of the picture, if the person faces us and stands upright."""
    right, wrong = 0, 0
    for person in people:
        joints = np.array(person['keypoints']).reshape(17, 3)
        if (
            not joints[[5, 6, 11, 12, 15, 16], 2].all()
            or not joints[3:5, 2].any()  # the head is cut off, and with it the nose
            or joints[15:, 1].min() < joints[5:13, 1].max()
        ):
            continue
        facing = joints[:3, 2].any()  # nose and eyes are labelled if so, and only then
        gaps = joints[[5, 11], 0] - joints[[6, 12], 0]  # shoulders, hips
        for gap in gaps:
            right += (gap > 0) == facing
            wrong += (gap > 0) != facing
    assert right > 60 and wrong <= 0.01 * right


def test_numbers_of_people_are_kept():
    rng = np.random.default_rng(0)
    assert synthetic.draw_picture(rng, 96, (0, 0))[1] == []
    for number in (1, 3):
        anns = synthetic.draw_picture(rng, 96, (number, number))[1]
        assert len([a for a in anns if not a['iscrowd']]) == number


def test_runs_are_what_pycocotools_counts():
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    for wanted in (mask, ~mask, np.ones((2, 3), bool), np.zeros((2, 3), bool)):
        runs = run_lengths(wanted)
        decoded = masks.decode(masks.frPyObjects(runs, *wanted.shape))
        assert (decoded == wanted).all() and sum(runs['counts']) == wanted.size


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / 'set'
    with monkeypatch.context() as patch:
        patch.setattr(synthetic.json, 'dumps', None)  # fails when all pictures are drawn
        with pytest.raises(TypeError):
            synthetic.make(folder, (2, 1), size=64)
    assert list(tmp_path.iterdir()) == []
    synthetic.make(folder, (2, 1), size=64)
    assert len(list(folder.glob('images/*/*.jpg'))) == 3


def test_leftovers_of_a_killed_run_go_away_and_live_ones_stay(tmp_path):
    own, old, live = (tmp_path / f'set.{name}.part' for name in (
        f'{synthetic.platform.node()}-{os.getpid()}', 'other-7', 'other-8'))  # fmt: skip
    for left in (own, old, live):
        (left / 'images').mkdir(parents=True)
    os.utime(old, (0, 0))
    synthetic.make(tmp_path / 'set', (2, 1), size=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set', live.name]


def test_the_same_set_is_kept_and_another_one_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / 'set'
    synthetic.make(folder, (2, 1), size=64)
    inode = folder.stat().st_ino
    synthetic.make(folder, (2, 1), size=64)
    with monkeypatch.context() as patch:  # another process finishes first
        patch.setattr(synthetic.Path, 'exists', lambda path: False)
        synthetic.make(folder, (2, 1), size=64)
    assert folder.stat().st_ino == inode and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError):
        synthetic.make(folder, (2, 1), size=64, seed=1)


def test_one_rank_of_a_machine_draws_and_the_others_wait_for_it(work, monkeypatch):
    config = apply_settings(quickstart.__config__, ['data.drawn.pictures=[2,1]'])
    waited = []

    def wait(seconds):
        """The set appears while rank 1 sleeps."""
        waited.append(seconds)
        with monkeypatch.context() as patch:
            patch.setattr(dist, 'local_rank', lambda: 0)
            synthetic.located(config)
        monkeypatch.setattr(synthetic, 'draw_set', None)  # rank 1 would fail if it drew

    monkeypatch.setattr(synthetic, 'time', SimpleNamespace(sleep=wait))
    monkeypatch.setattr(dist, 'local_rank', lambda: 1)
    data = synthetic.located(config)['data']
    assert len(waited) == 1 and len(list(work.glob('data/cache/*/images/*/*.jpg'))) == 3
    assert Path(data['valid_annotations']).is_file()
    assert synthetic.located(config)['data'] == data and len(waited) == 1
