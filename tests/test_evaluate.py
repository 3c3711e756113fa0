"""COCO AP: perfect answers, empty ones, wrong ones, and the best that the method can reach."""

import contextlib
import copy
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import test
from data.coco_pose import ref
from data.coco_pose.dp import GenerateHeatmap
from data.coco_pose.results import STATS, coco_scores, compare, to_coco
from data.coco_pose.splits import open_valid
from task import pose
from test import evaluate
from utils.affine import get_transform, invert, kpt_affine
from utils.draw import GREY, TITLE, person_colour
from utils.group import HeatmapParser

FLIP = list(ref.COCO.flip)


def joints_of(split, number):
    """The labelled people (P, K, 3) of a photo, in its own frame."""
    return split.keypoints[split.people(number)]


def answers(split, numbers=None, score=0.9):
    """The annotations themselves as detections."""
    detections = []
    for number in range(len(split)) if numbers is None else numbers:
        people = joints_of(split, number)
        detections += to_coco(people, np.full(len(people), score), split.ids[number])
    return detections


def whole(coco, configure, *settings):
    """All photos of a drawn set as a validation split, and the config that says so."""
    config = configure(*coco.settings, f'data.valid_annotations={coco.annotations}', *settings)
    return open_valid(config['data']), config


def draw(people_output, R, reach=1):
    """Maps det, tag (K, R, R) of people (P, K, 3) in the output frame, tags 3 apart."""
    det = GenerateHeatmap(R, 17)(people_output)
    tag = np.full_like(det, 99)
    for p, person in enumerate(people_output):
        for k, (x, y, v) in enumerate(person):
            if v > 0 and 0 <= x < R and 0 <= y < R:
                rows = slice(max(int(y) - reach, 0), int(y) + reach + 1)
                tag[k, rows, max(int(x) - reach, 0) : int(x) + reach + 1] = 3 * p
    return det, tag


class Oracle:
    """A network that knows the annotations, and tells photos apart by their colour.

    Whether a photo and its mirror image get the answers of that photo depends on the evaluation.
    """

    device = 'cpu'

    def __init__(self, coco, split, config):
        self.split, self.config = split, config
        self.seen = []
        for number, size in enumerate(split.sizes):
            photo = np.full((*size, 3), 10 * number + 10, np.uint8)
            cv2.imwrite(str(split.path(number)), photo)

    def __call__(self, images):
        B = len(images) // 2
        side = images.shape[1]
        preds = []
        for photo, mirrored in zip(images[:B], images[B:], strict=True):
            assert torch.equal(photo.flip(1), mirrored)
            number = int(photo[side // 2, side // 2, 0]) // 10 - 1
            self.seen.append(number)
            height, width = self.split.sizes[number]
            center, scale = (width / 2, height / 2), max(height, width) / 200
            matrix = get_transform(center, scale, (side // 4, side // 4))[:2]
            people = joints_of(self.split, number)
            people[..., :2] = kpt_affine(people[..., :2], matrix)
            det, tag = draw(people, side // 4)
            preds.append((np.concatenate([det, tag]), np.concatenate([det[FLIP], tag[FLIP]])))
        photos = np.stack([photo for photo, _ in preds])
        mirrors = np.stack([mirror[:, :, ::-1] for _, mirror in preds])
        return [torch.from_numpy(np.concatenate([photos, mirrors])[:, None])]


# --- scores ---


def test_perfect_detections_score_1(make_coco, configure):
    split, _ = whole(make_coco(people=(1, 3, 2), valid=(2, 0, 1)), configure)
    figures, text, *_ = coco_scores(split, answers(split))
    assert tuple(figures) == STATS and len(text.splitlines()) == 10
    assert figures['AP'] == figures['AP50'] == figures['AR'] == 1.0


@pytest.mark.parametrize('mode', ['single', 'multi'])
@pytest.mark.parametrize('batchsize', [1, 2])
def test_perfect_heatmaps_score_nearly_1(make_coco, configure, mode, batchsize):
    """Through reading, warping, both passes, merging, grouping and the way back to the photo.

    What is missing is the quarter of an output pixel that `adjust` moves a symmetric peak by.
    """
    coco = make_coco(people=(1, 3, 2), valid=(2, 0, 1), size=(160, 200), kind='png')
    split, config = whole(coco, configure, 'train.input_res=512', 'train.output_res=128',
                          f'test.batchsize={batchsize}')  # fmt: skip
    oracle = Oracle(coco, split, config)
    figures, text, *_, detections = evaluate(oracle, split, mode)
    assert figures['AP'] > 0.98 and figures['AP50'] == figures['AR50'] == 1
    assert sorted(oracle.seen) == sorted([*range(len(split))] * (3 if mode == 'multi' else 1))
    assert len(detections) == 9


def test_shuffled_tags_lose_the_people(make_coco, configure):
    """The control of an AP figure: perfect heatmaps are worth little without their tags."""
    coco = make_coco(people=(2, 3, 3), valid=(2, 0, 1), size=(160, 200), kind='png')
    split, config = whole(coco, configure, 'train.input_res=512', 'train.output_res=128',
                          'test.shuffle_tags=True')  # fmt: skip
    figures, *_ = evaluate(Oracle(coco, split, config), split)
    assert figures['AP'] < 0.5


def test_a_selection_is_evaluated_alone(make_coco, configure):
    coco = make_coco(people=(1, 3, 2), valid=(), kind='png')
    split, config = whole(coco, configure, 'train.input_res=256', 'train.output_res=64')
    figures, *_, detections = evaluate(Oracle(coco, split, config), split.select(slice(2)))
    assert {d['image_id'] for d in detections} == set(split.ids[:2])
    assert figures['AR50'] == 1  # of the photos that were looked at


def test_nothing_found_scores_0(make_coco, configure):
    split, config = whole(make_coco(people=(1, 2)), configure)

    def blind(images):
        return [torch.zeros(len(images), 1, 34, 16, 16)]

    blind.config, blind.device = config, 'cpu'
    figures, text, *_, detections = evaluate(blind, split)
    assert detections == [] and len(text.splitlines()) == 10
    assert all(figures[name] == 0 for name in ('AP', 'AP50', 'AP75', 'AR', 'AR50', 'AR75'))


def test_wrong_joints_score_less(make_coco, configure):
    split, _ = whole(make_coco(people=(2, 2), valid=()), configure)
    detections = answers(split)
    moved = np.array(detections[0]['keypoints']).reshape(17, 3) + (40, 40, 0)
    detections[0]['keypoints'] = moved.flatten().tolist()
    assert 0.4 < coco_scores(split, detections)[0]['AP'] < 0.9
    for entry in detections:
        swapped = np.array(entry['keypoints']).reshape(17, 3)[FLIP]
        entry['keypoints'] = swapped.flatten().tolist()
    assert coco_scores(split, detections)[0]['AP'] < 0.3  # left is not right


def test_images_without_people_count(make_coco, configure):
    """Somebody found there is a mistake, and the surer the worse."""
    split, _ = whole(make_coco(people=(2,), valid=(0, 1)), configure)
    ghost = answers(split, [0], score=0.99)[:1]
    ghost[0]['image_id'] = int(split.ids[1])
    figures, *_ = coco_scores(split, answers(split) + ghost)
    assert 0.5 < figures['AP'] < 0.99 and figures['AR'] == 1.0
    only_people = split.select([0, 2])
    assert coco_scores(only_people, answers(only_people))[0]['AP'] == 1.0


@pytest.mark.parametrize('form', ['runs', 'box'])
def test_people_found_in_a_crowd_count_neither_way(make_coco, configure, form):
    coco = make_coco(people=(1,), valid=(2,), size=(160, 200), crowd=form)
    split, _ = whole(coco, configure)
    stray = answers(split, [0], score=0.99)
    inside = np.array(stray[0]['keypoints']).reshape(17, 3)
    inside[:, 0] = np.linspace(5, 40, 17)  # the crowd covers the left quarter
    stray[0]['keypoints'] = inside.flatten().tolist()
    assert coco_scores(split, answers(split) + stray)[0]['AP'] == 1.0
    del coco.content['annotations'][-1]  # without the crowd
    coco.annotations.write_text(json.dumps(coco.content))
    split, _ = whole(coco, configure)
    assert coco_scores(split, answers(split) + stray)[0]['AP'] < 1.0


def test_annotations_of_other_tools_are_evaluated(make_coco, configure):
    """Without segmentation, area, iscrowd or num_keypoints, and without categories."""
    coco = make_coco(people=(1, 2), valid=())
    for entry in coco.content['annotations']:
        for key in ('segmentation', 'area', 'iscrowd', 'num_keypoints'):
            del entry[key]
    del coco.content['categories']
    coco.annotations.write_text(json.dumps(coco.content))
    split, _ = whole(coco, configure)
    assert coco_scores(split, answers(split))[0]['AP'] == 1.0


def test_entries_are_the_best_first_and_say_what_was_found():
    people = np.zeros((3, 17, 5), np.float32)
    people[:, :9, :3] = 12.345, 67.891, 0.4
    entries = to_coco(people, np.array([0.2, 0.7, 0.5], np.float32), 42)
    assert [entry['score'] for entry in entries] == pytest.approx([0.7, 0.5, 0.2], abs=1e-6)
    for entry in entries:
        assert entry['image_id'] == 42 and entry['category_id'] == 1
        joints = np.array(entry['keypoints']).reshape(17, 3)
        np.testing.assert_allclose(joints[:9], [(12.345, 67.891, 0.4)] * 9, atol=0.0006)
        assert not joints[9:].any()
    json.dumps(entries)


def test_who_matches_has_the_colour_of_the_truth(make_coco, configure):
    """In whatever order they are found; the others are grey, and guessed joints are hollow."""
    split, _ = whole(make_coco(people=(3,), valid=(), size=(200, 400)), configure)
    detections = answers(split)[::-1] + answers(split)[:1]
    away = np.array(detections[3]['keypoints']).reshape(17, 3) + (0, -40, 0)
    detections[3] |= {'keypoints': away.flatten().tolist(), 'score': 0.5}
    detections[0]['guessed'] = [16]
    _, _, evaluation = coco_scores(split, detections)
    picture = compare(split.read(0), split, 0, evaluation, 0.1)
    zoom, room = 640 / 400, (picture.shape[1] + 6) // 2

    def colour(person, k, left):
        x, y = np.round(zoom * person[k, :2]).astype(int)
        return tuple(picture[TITLE + y, x if left else x + room])

    for number, person in enumerate(joints_of(split, 0)):
        assert colour(person, 15, False) == colour(person, 15, True) == person_colour(number)
        assert (colour(person, 16, True) == person_colour(number)) == (number < 2)
    assert colour(away, 15, True) == GREY


# --- the command ---


def test_the_command_writes_what_coco_takes(run1, call_script):
    coco, folder = run1
    done = call_script('test.py', '-c', 'run1')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(' @[ IoU=' in line for line in lines) == 10
    assert lines[0].startswith(' Average Precision  (AP) @[ IoU=0.50:0.95')
    entries = json.loads((folder / 'dt.json').read_text())
    assert len(entries) > 3 and {e['image_id'] for e in entries} <= set(coco.valid_ids)
    for entry in entries:
        assert set(entry) == {'image_id', 'category_id', 'keypoints', 'score'}
        assert len(entry['keypoints']) == 51 and entry['category_id'] == 1
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(coco.annotations)).loadRes(str(folder / 'dt.json'))
    assert len(found.anns) == len(entries)
    results = json.loads((folder / 'results.json').read_text())
    assert results['single'].keys() >= {*STATS, 'photos', 'people'}
    assert results['single']['photos'] == 3 and results['single']['people'] == len(entries)


def test_results_of_all_modes_are_kept(run1, call_script):
    _, folder = run1
    for arguments in ((), ('-m', 'multi'), ('--scales', '1,0.5', '--checkpoint', 'best')):
        assert call_script('test.py', '-c', 'run1', '--limit', 1, *arguments).returncode == 0
    results = json.loads((folder / 'results.json').read_text())
    assert set(results) == {'single', 'multi', 'scales 1,0.5'}
    assert all(figures['photos'] == 1 for figures in results.values())
    assert results['scales 1,0.5']['checkpoint'] == 'best'


def test_without_refine_only_seen_joints_are_reported(run1, call_script):
    _, folder = run1
    counts = []
    for arguments in ((), ('--no-refine',)):
        assert call_script('test.py', '-e', 'run1', *arguments).returncode == 0
        entries = json.loads((folder / 'dt.json').read_text())
        counts.append([sum(v > 0 for v in entry['keypoints'][2::3]) for entry in entries])
    assert len(counts[0]) == len(counts[1])
    assert sum(counts[0]) > sum(counts[1])


# --- the ceiling ---


def ceiling(split, R, points='adjusted', rng=None):
    """AP of the annotations drawn as heatmaps of R x R and grouped again.

    points: 'adjusted' as the method has it, the 'middle' of the peak's pixel, or its 'corner'.
    rng: shuffles the people of each photo, which decides only between those of equal scores.
    """
    detections = []
    for number, image_id in enumerate(split.ids):
        height, width = split.sizes[number]
        center, scale = (width / 2, height / 2), max(height, width) / 200
        matrix = get_transform(center, scale, (R, R))[:2]
        people = joints_of(split, number)
        people[..., :2] = kpt_affine(people[..., :2], matrix)
        det, tag = draw(people, R, reach=0)
        adjusted = points == 'adjusted'
        maps = det[None], tag[None, ..., None]
        found = HeatmapParser().parse(*maps, adjust_points=adjusted)[0]
        found[..., :2] += 0.5 * (points == 'middle')
        scores = found[:, :, 2].mean(1)
        found = np.stack([test.refine(det, tag[..., None], person) for person in found])
        found[..., :2] = kpt_affine(found[..., :2], invert(matrix))
        order = np.arange(len(found)) if rng is None else rng.permutation(len(found))
        detections += to_coco(found[order], scores[order], image_id)
    return coco_scores(split, detections)[0]['AP']


@pytest.mark.parametrize('R, wanted', [(128, 0.926), (64, 0.704)])
def test_the_ceiling_on_photos_of_coco(shared, R, wanted):
    """What no network can exceed, since it is trained toward such heatmaps.

    All peaks are 1, so people with as many joints have equal scores, and COCOeval takes these in
    the order of the file: the third digit is chance, as shuffling shows, hence the tolerance. It
    is narrow enough to tell where in its pixel a peak is taken to be.
    """
    file = str(shared / 'coco' / 'annotations' / 'person_keypoints_sample.json')
    images = str(shared / 'coco' / 'images')
    split = open_valid({'annotations': '', 'images': images, 'valid_annotations': file,
                        'valid_images': ''})  # fmt: skip
    assert split.count_people().sum() == 12
    assert ceiling(split, R) == pytest.approx(wanted, abs=0.005)
    rng = np.random.default_rng(0)
    for _ in range(2):
        assert ceiling(split, R, rng=rng) == pytest.approx(wanted, abs=0.005)
    for points in ('middle', 'corner'):
        assert abs(ceiling(split, R, points) - wanted) > 0.01


def test_peaks_on_the_margins_count_only_if_they_are_to():
    """A landscape photo's upper margin holds a peak, and its middle another."""
    pred = torch.zeros(2, 34, 128, 128)
    pred[:, 0, 5, 64] = pred[:, 0, 64, 64] = 1.0
    pred[:, 17, 5, 64] = 9.0
    for margins, expected in ((True, 2), (False, 1)):
        config = copy.deepcopy(pose.__config__)
        config['test']['margins'] = margins
        frames = test.input_frames(320, 640, config, [1.0])
        people, *_ = test.find_people([pred], frames, (320, 640), [1.0], config)
        assert len(people) == expected
        assert (people[:, 0, 1] > 0).sum() == 1


# --- what goes wrong on the disk, and Ctrl-C ---


def fail_to_write(monkeypatch, name):
    """Makes the disk full for the file `name`, however it is written."""
    real = open

    def open_or_fail(path, mode='r', *args, **kwargs):
        if Path(path).name.startswith(name) and mode != 'rb' and 'r' not in mode:
            raise OSError(28, 'No space left on device')
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr('builtins.open', open_or_fail)
    write_bytes = Path.write_bytes

    def write_or_fail(path, data):
        if path.match(f'vis/{name}*'):
            raise OSError(28, 'No space left on device')
        return write_bytes(path, data)

    monkeypatch.setattr(Path, 'write_bytes', write_or_fail)


@pytest.mark.parametrize('name', ['dt.json', 'results.json', '01-worst'])
def test_what_cannot_be_written_is_an_error_in_one_line(run1, call_script, monkeypatch, name):
    fail_to_write(monkeypatch, name)
    done = call_script('test.py', '-c', 'run1')
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: exp/run1/') and name in line and 'No space left' in line
    assert 'Average Precision' in done.stdout and 'vis:' not in done.stdout


def test_half_written_results_do_not_matter(run1, call_script, work):
    (work / 'exp/run1/results.json').write_text('{"single": {"AP"')
    done = call_script('test.py', '-c', 'run1')
    assert done.returncode == 0 and not done.stderr
    assert list(json.loads((work / 'exp/run1/results.json').read_text())) == ['single']


@pytest.mark.parametrize('script', ['test.py', 'utils/convert.py'])
def test_ctrl_c_is_one_line(run1, call_script, monkeypatch, script):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr('torch.load', interrupt)
    arguments = ['-c', 'run1'] if script == 'test.py' else ['exp/run1', 'new.pth']
    done = call_script(script, *arguments)
    assert (done.returncode, done.stderr) == (130, 'error: interrupted\n')
