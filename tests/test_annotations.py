"""The reader of COCO's files: arrays hold what a file says, and errors say where it is wrong."""

import contextlib
import gc
import io
import json
import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as rle_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.coco_pose import annotations, dp
from data.coco_pose.annotations import read_file
from data.coco_pose.results import coco_scores
from data.coco_pose.splits import open_splits, open_valid
from utils.errors import UserError
from utils.regions import RunLengths, pack


@pytest.fixture
def coco(make_coco):
    return make_coco(people=(1, 3, 0), valid=(2, 0), crowd='runs')


def rewrite(coco):
    """Writes the annotations again after a test has changed coco.content; returns the path."""
    coco.annotations.write_text(json.dumps(coco.content))
    return str(coco.annotations)


# --- what is read ---


def test_a_split_holds_what_the_file_says(coco):
    """In the order of the file, though its annotations are shuffled."""
    np.random.default_rng(0).shuffle(coco.content['annotations'])
    coco.content['annotations'][1]['image_id'] = 77  # of no image
    split = read_file(rewrite(coco))
    assert split.ids.tolist() == [entry['id'] for entry in coco.content['images']]
    assert split.names.tolist() == [entry['file_name'] for entry in coco.content['images']]
    assert split.sizes.tolist() == 5 * [[80, 100]]
    people = 0
    for number, image_id in enumerate(split.ids):
        wanted = [a for a in coco.content['annotations'] if a['image_id'] == image_id]
        rows = split.annotations(number)
        assert split.keypoints[rows].reshape(-1, 51).tolist() == [a['keypoints'] for a in wanted]
        assert split.boxes[rows].tolist() == [a['bbox'] for a in wanted]
        assert split.areas[rows].tolist() == [a['area'] for a in wanted]
        assert split.is_crowd[rows].tolist() == [a['iscrowd'] for a in wanted]
        labelled = [not a['iscrowd'] for a in wanted]
        assert split.people(number).tolist() == rows[labelled].tolist()
        people += sum(labelled)
        assert split.count_people()[number] == sum(labelled)
    assert people == 5


def test_photos_can_be_selected(coco):
    split = read_file(rewrite(coco))
    part = split.select([4, 1])
    assert len(part) == 2 and part.ids.tolist() == split.ids[[4, 1]].tolist()
    assert part.people(1).tolist() == split.people(1).tolist()
    assert part.count_people().tolist() == [0, 3]
    assert part.keypoints is split.keypoints


def test_only_arrays_stay(make_coco):
    """A file of 5 MB leaves 0.5 MB of keypoints behind, and little else."""
    coco = make_coco(people=(1, 1))
    one = coco.content['annotations'][0] | {'segmentation': [[0.5, 1.5] * 400]}
    coco.content['annotations'] = 1200 * [one]
    path = rewrite(coco)
    assert coco.annotations.stat().st_size > 5e6
    tracemalloc.start()
    try:
        split = read_file(path)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert split.keypoints.nbytes == 1200 * 17 * 3 * 8
    assert held < 1.5 * split.keypoints.nbytes


def test_a_file_is_parsed_once(coco, configure, monkeypatch):
    parsed = []
    parse = annotations.Reader

    def count(*arguments):
        parsed.append(1)
        return parse(*arguments)

    monkeypatch.setattr(annotations, 'Reader', count)
    config = dp.prepare(configure(*coco.settings))
    dp.init(config)
    open_valid(config['data'])
    assert len(parsed) == 1
    coco.content['images'][0]['license'] = 3
    rewrite(coco)
    open_valid(config['data'])
    assert len(parsed) == 2  # a file that has changed is read again


def test_evaluation_reads_its_own_file_alone(coco, make_coco, configure):
    other = make_coco(name='other', split='val2017', people=(1,), valid=())
    coco.annotations.write_text('broken')
    config = configure(*coco.settings, f'data.valid_annotations={other.annotations}',
                       f'data.valid_images={other.images}')  # fmt: skip
    assert dp.init(config, train=False)['valid_split'].ids.tolist() == other.train_ids


@pytest.mark.parametrize(
    'setting, words',
    [('data.images=nowhere', 'tried nowhere/train2017, nowhere;'),
     ('data.valid_annotations=no.json', 'no COCO annotations at no.json')],
)  # fmt: skip
def test_wrong_paths_are_told_before_anything_is_parsed(coco, configure, work, setting, words):
    coco.annotations.write_text('broken')
    config = configure(*coco.settings, setting)
    for function in (dp.prepare, dp.init):
        with pytest.raises(UserError, match=words):
            function(config)


def test_reading_a_large_file_is_announced(coco, capsys, monkeypatch):
    monkeypatch.setattr(annotations, 'LARGE', 1000)
    read_file(rewrite(coco))
    assert capsys.readouterr().out == f'reading {coco.annotations} (0 MB)\n'


def test_what_is_not_read_may_be_anything(coco):
    for entry in (*coco.content['images'], *coco.content['annotations']):
        entry['attributes'] = {'score': float('nan'), 'deep': [[{}]], 'large': 10**400}
        entry['num_keypoints'] = 'many'
    coco.content['info'] = float('inf')
    split = read_file(rewrite(coco))
    assert split.count_people().sum() == 6


def test_a_byte_order_mark(coco):
    coco.annotations.write_bytes(b'\xef\xbb\xbf' + coco.annotations.read_bytes())
    assert len(read_file(str(coco.annotations))) == 5


@pytest.mark.parametrize('place', [0, 1])  # before the first keypoints, which say how many
def test_boxes_without_keypoints_are_no_people(place, coco, configure):
    """They are regions where detections count neither way, as those that COCO labels with 0."""
    box, null, empty = (dict(coco.content['annotations'][0]) for _ in range(3))
    del box['keypoints']
    null['keypoints'], empty['keypoints'] = None, []
    coco.content['annotations'][place:place] = [box, null, empty]
    rewrite(coco)
    split, _ = open_splits(configure(*coco.settings)['data'])
    assert split.count_people().tolist() == [1, 3]
    assert len(split.annotations(0)) == 5 and not split.keypoints[place : place + 3].any()
    assert split.keypoints[3 - 3 * place].any()
    read = split.keypoints[split.people(1)].reshape(3, 51).tolist()
    assert read == [entry['keypoints'] for entry in coco.content['annotations'][4:7]]


# --- errors ---


@pytest.mark.parametrize(
    'kind, key, value, words',
    [
        ('images', 'id', 'x', 'id: expected int, got str'),
        ('images', 'id', 2**63, 'id: '),
        ('images', 'id', 900001, 'id is 900001, as that of an earlier one'),
        ('images', 'file_name', 5, 'file_name: expected str, got int'),
        ('images', 'width', 0, 'width: expected int >= 1'),
        ('images', 'height', 99.5, 'height: expected int'),
        ('annotations', 'image_id', None, 'image_id: expected int, got null'),
        ('annotations', 'iscrowd', 2, 'iscrowd: expected 0 or 1'),
        ('annotations', 'bbox', [1, 2, 3], 'bbox: expected x, y, width, height'),
        ('annotations', 'bbox', [1, 2, -3, 4], 'bbox: expected x, y, width, height'),
        ('annotations', 'area', -1, 'area: expected float >= 0'),
        ('annotations', 'area', 'large', 'area: expected float'),
        ('annotations', 'keypoints', [1, 2, 3], 'expected 51 keypoint values, found 3'),
        ('annotations', 'keypoints', 51 * ['a'], 'keypoints[0]: expected float'),
        ('annotations', 'keypoints', 51 * [3], 'expected 0, 1 or 2'),
        ('annotations', 'keypoints', 50 * [1] + [-1], 'expected 0, 1 or 2'),
        ('annotations', 'keypoints', 51 * [1e6], 'keypoints[0]: expected float < 1000000.0'),
    ],
)  # fmt: skip
def test_an_error_names_file_entry_and_field(coco, kind, key, value, words):
    coco.content[kind][1][key] = value
    with pytest.raises(UserError) as error:
        read_file(rewrite(coco))
    assert str(error.value).startswith(f'{coco.annotations}, entry 1 of {kind}: {words}')


@pytest.mark.parametrize('key', ['id', 'file_name'])
def test_a_missing_field_is_named(coco, key):
    del coco.content['images'][2][key]
    with pytest.raises(UserError, match=f'entry 2 of images: .* missing required field {key}'):
        read_file(rewrite(coco))


# --- regions of crowds ---


def slow_runs(text):
    """The run lengths that a compressed text gives, [] where it is none: one bit after another."""
    runs, value, shift = [], 0, 0
    for code in text.encode():
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            return []
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else []


def test_compressed_regions_are_right_or_refused():
    """Intact texts are taken; of damaged ones only such as still cover the photo."""
    rng, taken, refused = np.random.default_rng(0), 0, 0
    for turn in range(3000):
        height, width = rng.integers(1, 9, 2).tolist()
        mask = np.asfortranarray(rng.random((height, width)) < 0.5).astype(np.uint8)
        text = rle_mask.encode(np.asfortranarray(mask))['counts'].decode()
        if turn % 2:
            place = int(rng.integers(len(text)))
            other = chr(rng.integers(40, 120))
            damaged = (other + text[place + 1 :], text[place + 1 :], other + text[place:], '')
            text = text[:place] + damaged[int(rng.integers(4))]
        runs = slow_runs(text)
        covers = bool(runs) and min(runs) >= 0 and sum(runs) == height * width
        try:
            region = pack(RunLengths((height, width), text), [height, width])
        except ValueError:
            refused += 1
            assert turn % 2 and (not covers or 0 in runs[1:])
            continue
        taken += 1
        assert covers
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
        np.testing.assert_array_equal(rle_mask.decode(region), pixels)
    assert taken > 1500 and refused > 1000


# --- the evaluation's truth ---


def test_figures_are_those_of_pycocotools(coco, configure):
    """To the last digit, with the file as pycocotools itself reads it."""
    for entry in coco.content['annotations'][::2]:
        entry['keypoints'][2::3] = 17 * [0]
        entry['num_keypoints'] = 0
    rewrite(coco)
    config = configure(*coco.settings, f'data.valid_annotations={coco.annotations}')
    split, rng = open_valid(config['data']), np.random.default_rng(0)
    detections = []
    for entry in coco.content['annotations']:
        joints = np.array(entry['keypoints'], float).reshape(17, 3)
        joints[:, :2] += rng.normal(0, 3, (17, 2))
        detections.append({'image_id': entry['image_id'], 'category_id': 1, 'score': rng.random(),
                           'keypoints': joints.flatten().tolist()})  # fmt: skip
    inside = {'image_id': coco.train_ids[0], 'category_id': 1, 'keypoints': 17 * [12.0, 40.0, 1.0]}
    detections += [inside | {'score': 0.95}, inside | {'score': 0.99}]  # a crowd takes any number
    figures, *_ = coco_scores(split, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco.annotations))
        evaluation = COCOeval(truth, truth.loadRes(detections), 'keypoints')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(figures.values()) == evaluation.stats.tolist()
    assert 0 < figures['AP'] < 1
