"""Sheets of training samples show what the losses get."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.browse import SIDE, decode, draw_sample, first_samples
from data.coco_pose import dp, ref
from utils.draw import person_colour, save_picture

K, R = len(ref.COCO.names), 32


@pytest.fixture
def people():
    """Two people (P, K, 3) in the output frame; the first lacks a joint, and one is outside."""
    points = np.random.default_rng(0).uniform(1, R - 1, (2, K, 2))
    people = np.concatenate([points, np.full((2, K, 1), 2.0)], 2)
    people[0, 3, 2] = 0
    people[1, 5, 0] = R + 3
    return people


def sample_of(people):
    """A grey sample with these people, whose left half is masked."""
    mask = np.ones((R, R), np.float32)
    mask[:, : R // 2] = 0
    return {
        'imgs': np.full((4 * R, 4 * R, 3), 0.5, np.float32),
        'masks': mask,
        'keypoints': dp.KeypointsRef(30, K)(people, R),
        'heatmaps': dp.GenerateHeatmap(R, K)(people),
        'image_id': np.int64(7),
    }


def test_decoding_gives_the_people_back(people):
    found = decode(dp.KeypointsRef(30, K)(people, R), R, 4)
    there = people[..., 2] > 0
    there[1, 5] = False
    np.testing.assert_array_equal(found[..., 2] > 0, there)
    np.testing.assert_array_equal(found[there][:, :2], 4 * (np.floor(people[there][:, :2]) + 0.5))
    assert decode(np.zeros((30, K, 2), np.int64), R, 4).shape == (0, K, 3)


def test_each_joint_has_its_persons_colour_and_its_heatmap(people):
    picture = draw_sample(sample_of(people), ref.COCO.skeleton)
    assert picture.shape == (SIDE, 2 * SIDE, 3) and picture.dtype == np.uint8
    found = decode(sample_of(people)['keypoints'], R, SIDE / R)
    alone = 0
    for number, person in enumerate(found):
        for x, y, seen in person.round().astype(int):
            near = np.abs(found[..., :2] - (x, y)).max(2) < 30
            if seen and near.sum() == 1 and y > 40:  # no other joint is drawn over it
                alone += tuple(picture[y, x]) == person_colour(number)
                assert picture[y, SIDE + x].max() > 150  # on grey it is 64
    assert alone >= 5


def test_masked_regions_are_striped():
    nobody = np.zeros((0, K, 3))
    left, right = np.split(draw_sample(sample_of(nobody), ref.COCO.skeleton)[60:, :SIDE], 2, axis=1)
    red, green = left[..., 0].astype(int), left[..., 1].astype(int)
    assert (red > green).all() and len(np.unique(red)) == 2
    assert (right == right[0, 0]).all() and right[0, 0, 0] == right[0, 0, 1]


def test_samples_are_those_of_the_training(make_coco, configure):
    data = make_coco(people=(1, 2, 3))
    config = configure(*data.settings, 'train.num_workers=0', 'train.batchsize=3')
    batch = next(iter(dp.init(config)['train']))
    for b, sample in enumerate(first_samples(config, 3)):
        assert set(sample) == set(batch)
        for name in ('imgs', 'masks', 'keypoints', 'heatmaps', 'image_id'):
            np.testing.assert_array_equal(sample[name], batch[name][b])


def test_the_command_writes_sheets(make_coco, tiny, call_script, work):
    data = make_coco(people=(1, 2, 0))
    command = ['data/browse.py', '-t', 'pose', '-n', 9, '--set', *data.settings, *tiny]
    done = call_script(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['samples/sheet-01.jpg', 'samples/sheet-02.jpg']
    first, second = (cv2.imread(path) for path in done.stdout.splitlines())
    assert first.shape[1] == second.shape[1] >= 4 * SIDE and first.shape[0] > 4 * SIDE
    assert second.shape[0] == SIDE
    (work / 'samples' / 'notes.txt').write_text('mine')
    command[4] = 1
    assert call_script(*command).stdout.splitlines() == ['samples/sheet-01.jpg']
    assert sorted(p.name for p in (work / 'samples').iterdir()) == ['notes.txt', 'sheet-01.jpg']


def test_the_quickstart_can_be_browsed(call_script, work):
    done = call_script('data/browse.py', '-t', 'quickstart', '-n', 1, '--out', 'look', '--set',
                       'data.drawn.pictures=[2,1]', 'data.drawn.size=64')  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / 'look' / 'sheet-01.jpg').is_file()


def test_what_cannot_be_browsed(call_script, make_coco, tiny, work):
    data = make_coco()
    (work / 'file').write_text('mine')
    for arguments, words in (
        (['-t', 'nothing'], "no task 'nothing'"),
        (['--set', 'data.annotations=no.json'], 'no.json'),
        (['--out', 'file', '-n', '1', '--set', *data.settings, *tiny], 'error: file: '),
    ):
        done = call_script('data/browse.py', *arguments)
        assert done.returncode == (1 if 'file' in arguments else 2)
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    """OpenCV's own writer returns False, or ends in an error of its own."""
    picture = np.zeros((2, 3, 3), np.uint8)
    picture[..., 0] = 200  # red
    save_picture(tmp_path / 'a.png', picture)
    assert (cv2.imread(str(tmp_path / 'a.png'))[..., ::-1] == picture).all()
    for name, made in (
        ('no/a.jpg', picture),
        ('a.xyz', picture),
        ('a', picture),
        ('wide.jpg', np.zeros((1, 70000, 3), np.uint8)),
        ('empty.jpg', picture[:0]),
    ):
        with pytest.raises(OSError, match=Path(name).name):
            save_picture(tmp_path / name, made)
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_a_full_disk_is_told_in_one_line(make_coco, tiny, call_script, work, monkeypatch):
    def fail(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', fail)
    data = make_coco()
    done = call_script('data/browse.py', '-n', '1', '--set', *data.settings, *tiny)
    assert done.returncode == 1
    assert done.stderr == 'error: samples/sheet-01.jpg: No space left on device\n'
    assert 'sheet' not in done.stdout
