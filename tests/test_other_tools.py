"""Annotations as other tools write them: read as what they mean, or noted, or refused by name."""

import json
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from data.coco_pose import dp, ref
from data.coco_pose.photo import read_photo
from data.coco_pose.splits import describe, open_splits
from utils.errors import UserError


@pytest.fixture
def opened(make_coco, configure):
    """opened(change): training and validation split after change(content) of a small COCO file."""
    coco = make_coco(people=(1, 2), valid=(1,), size=(160, 200))

    def open_changed(change=lambda content: None, *settings):
        content = json.loads(json.dumps(coco.content))
        change(content)
        coco.annotations.write_text(json.dumps(content, allow_nan=True))
        config = configure(*coco.settings, *settings)
        return open_splits(dp.prepare(config)['data'])

    open_changed.coco = coco
    return open_changed


def each(**fields):
    """A change: these fields in every annotation; a function gets the annotation."""

    def change(content):
        for entry in content['annotations']:
            entry |= {k: v(entry) if callable(v) else v for k, v in fields.items()}

    return change


def square(entry):
    x, y, width, height = entry['bbox']
    return [[x, y, x + width / 2, y, x + width / 2, y + height, x, y + height]]


@pytest.mark.parametrize('area', [0, 1, 32, None, 'absent', 2.0])
@pytest.mark.parametrize('source', ['segmentation', 'box', 'joints'])
def test_an_area_that_cannot_be_is_estimated(opened, area, source):
    def change(content):
        for entry in content['annotations']:
            entry['area'] = area
            entry['segmentation'] = square(entry) if source == 'segmentation' else []
            if source == 'joints':
                entry.pop('bbox')
            if area == 'absent':
                entry.pop('area')

    split, _ = opened(change)
    for number in range(len(split)):
        for row in split.people(number):
            points = split.keypoints[row][split.keypoints[row][:, 2] > 0, :2]
            sides = np.ptp(points, axis=0) if source == 'joints' else split.boxes[row][2:]
            share = {'segmentation': 0.5, 'box': 0.53, 'joints': 0.53}[source]
            assert split.areas[row] == pytest.approx(share * sides.prod(), rel=0.05)
    (note,) = describe(split)
    assert note.startswith(
        f'note: {split.file}: 4 people have no plausible area, which AP depends on'
    )


def test_areas_that_can_be_stay(opened):
    split, _ = opened(each(area=33.0, bbox=[0, 0, 8, 8], keypoints=[5, 5, 2, 9, 9, 2] + [0] * 45))
    assert set(split.areas) == {33.0} and split.estimated == 0 and describe(split) == []
    small = [0, 0, 2, 10, 20, 2] + [0] * 45
    split, _ = opened(each(area=20.0, keypoints=small, bbox=[0, 0, 10, 20], segmentation=[]))
    assert set(split.areas.round(6)) == {106.0} and split.estimated == 4
    # A hundredth of the box of the joints is too little.
    split, _ = opened(each(area=33.0, keypoints=[0, 0, 2, 100, 100, 2] + [0] * 45, bbox=None,
                             segmentation=[]))  # fmt: skip
    assert set(split.areas) == {5300.0} and split.estimated == 4


def test_a_small_area_that_the_segmentation_confirms_stays(opened):
    corner = [[2, 2, 7, 2, 7, 6, 2, 6]]  # of 5 x 4 pixels, in a box of 8 x 12
    small = {'keypoints': [2, 2, 2, 7, 6, 2] + [0] * 45, 'bbox': [0, 0, 8, 12]}
    split, _ = opened(each(area=20.0, segmentation=corner, **small))
    assert set(split.areas) == {20.0} and split.estimated == 0 and describe(split) == []
    split, _ = opened(each(area=1, segmentation=corner, **small))
    assert set(split.areas.round(2)) == {50.88} and split.estimated == 4
    # Not even where a tool writes the same stroke as both of them.
    stroke = [[0, 0, 2, 0, 2, 1, 0, 1]]
    split, _ = opened(each(area=2, segmentation=stroke, keypoints=[5, 5, 2] + [0] * 48,
                             bbox=[0, 0, 60, 60]))  # fmt: skip
    assert set(split.areas) == {0.53 * 3600}


@pytest.mark.parametrize('area', [0, 1, None])
@pytest.mark.parametrize('segmentation', [[], None])
def test_people_without_any_extent_are_noted(opened, area, segmentation):
    """As CVAT exports single points: AP would be 0 without a word."""
    point = {'keypoints': [50, 60, 2] + [0] * 48, 'bbox': [50, 60, 0, 0]}
    split, validation = opened(each(area=area, segmentation=segmentation, **point))
    assert split.estimated == 0
    for one, people in ((split, 3), (validation, 1)):
        assert describe(one) == [
            f'note: {one.file}: people without an area, a box, or joints that lie apart: {people}; '
            'AP counts only exact hits of them, so add areas or boxes'
        ]


@pytest.mark.parametrize('change, value', [
    (each(bbox=[]), 0), (each(bbox=None), 0), (each(iscrowd=0.0), 0), (each(iscrowd='0'), 0),
    (each(iscrowd=None), 0), (each(id=None, segmentation=None), 0),
    (lambda content: content['images'][0].update(width='200', height=160.0), 0),
    (lambda content: content['images'][0].update(width=None, height=None), 0),
    (lambda content: [e.update(image_id=float(e['image_id'])) for e in content['annotations']], 0),
    (lambda content: content['annotations'].append({'image_id': 900001, 'keypoints': []}), 1),
    (lambda content: content['annotations'].append({'image_id': 900001, 'bbox': [1, 1, 5, 5]}), 1),
    (lambda content: content['annotations'].append({'image_id': 900001, 'iscrowd': 1}), 1),
])  # fmt: skip
def test_harmless_forms_are_read_as_what_they_mean(opened, change, value):
    plain, _ = opened()
    split, _ = opened(change)
    assert split.ids.tolist() == plain.ids.tolist()
    for number in range(len(plain)):
        assert len(split.people(number)) == len(plain.people(number))
        for a, b in zip(split.people(number), plain.people(number), strict=True):
            np.testing.assert_array_equal(split.keypoints[a], plain.keypoints[b])
    assert len(split.keypoints) == len(plain.keypoints) + value


@pytest.mark.parametrize('nothing', [None, float('nan')])
def test_nothing_where_a_joint_has_no_label(opened, nothing):
    def change(content, v=0):
        for entry in content['annotations']:
            entry['keypoints'][9:12] = [nothing, nothing, v]

    split, _ = opened(change)
    assert not split.keypoints[:, 3].any() and split.keypoints[:, 4].any()
    with pytest.raises(UserError, match='entry 0 of annotations: .*labelled joint, found null'):
        opened(lambda content: change(content, v=2))


def test_a_byte_order_mark(opened):
    plain, _ = opened()
    path = opened.coco.annotations
    path.write_text('\ufeff' + path.read_text(), encoding='utf-8')
    split, _ = open_splits({**ref_settings(opened.coco)})
    assert split.ids.tolist() == plain.ids.tolist()


def ref_settings(coco):
    empty = {'joints': [], 'skeleton': [], 'flip_pairs': [], 'sigmas': [], 'joint_order': []}
    paths = dict(setting.removeprefix('data.').split('=') for setting in coco.settings)
    return empty | paths | {'valid_annotations': '', 'valid_images': ''}


def test_back_slashes_and_other_forms_of_unicode(opened):
    folder = opened.coco.path(900001).parent
    (folder / 'photos').mkdir()
    names = {0: 'photos/caf\u00e9.jpg', 1: 'photos/two.jpg'}
    for number, name in names.items():
        shutil.move(folder / opened.coco.content['images'][number]['file_name'], folder / name)

    def change(content):
        for number, name in names.items():
            decomposed = unicodedata.normalize('NFD', name)
            content['images'][number]['file_name'] = decomposed.replace('/', '\\')

    split, _ = opened(change)
    assert [split.path(number).is_file() for number in range(2)] == [True, True]


def test_everything_a_crowd_is_named(opened):
    def change(content):
        each(iscrowd=1, segmentation=[])(content)

    with pytest.raises(UserError, match='all of its annotations have iscrowd 1.*set it to 0'):
        opened(change)


# --- which photos train and which validate ---


def test_an_id_names_a_photo_within_its_own_file_alone(make_coco, configure):
    train = make_coco('train', people=(1, 1, 1), valid=(), first_id=1)
    valid = make_coco('valid', people=(1, 1), valid=(), first_id=1, size=(90, 110))
    settings = [f'data.valid_annotations={valid.annotations}', f'data.valid_images={valid.images}']
    split, validation = open_splits(configure(*train.settings, *settings)['data'])
    assert len(split) == 3 and len(validation) == 2 and describe(split) == []


def test_the_same_photo_under_another_id_is_left_out(make_coco, configure):
    coco = make_coco(people=(1, 1, 1), valid=())
    content = json.loads(json.dumps(coco.content))
    content['images'] = content['images'][1:2]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] == 900002]
    for entry, key in ((content['images'][0], 'id'), (content['annotations'][0], 'image_id')):
        entry[key] = 7
    file = coco.annotations.with_name('person_keypoints_other.json')
    file.write_text(json.dumps(content))
    settings = [f'data.valid_annotations={file}', f'data.valid_images={coco.path(900001).parent}']
    split, validation = open_splits(configure(*coco.settings, *settings)['data'])
    assert split.ids.tolist() == [900001, 900003] and validation.ids.tolist() == [7]
    note = f'note: {split.file}: 1 photos are validated on, and left out of training'
    assert describe(split) == [note]


def test_only_photos_of_coco_are_validated_by_their_ids(opened):
    def rename(content):
        record = content['images'][-1]  # of the published ids
        path = opened.coco.path(record['id'])
        shutil.copy(path, path.with_name('mine.jpg'))
        record['file_name'] = 'mine.jpg'

    with pytest.raises(UserError, match='set data.valid_annotations to a file of photos'):
        opened(rename)


# --- mirroring ---

NUMBERED = [str(number) for number in range(1, 18)]


def categories(names):
    entry = {'id': 1, 'name': 'person', 'keypoints': names}
    return lambda content: content.update(categories=[entry])


@pytest.mark.parametrize('names, mirrored', [
    (list(ref.COCO.names), True),
    (NUMBERED, False),
    ([f'new-point-{number}' for number in range(17)], False),
    (['Nase', 'Auge links', 'Auge rechts', *NUMBERED[:14]], False),
    # Half of the joints of MPII and more have a pair: the others are truly central.
    (['pelvis', 'thorax', 'neck', 'head', *(f'{side}_{joint}' for side in ('left', 'right')
                                            for joint in 'abcdef'), 'tail'], True),
])  # fmt: skip
def test_photos_are_mirrored_only_if_the_pairs_are_known(opened, configure, names, mirrored):
    opened(categories(names))
    config = dp.prepare(configure(*opened.coco.settings))
    assert (config['augmentation']['mirror'] > 0) is config['test']['mirror'] is mirrored
    notes = [line for line in ref.describe(config) if 'photos are not mirrored' in line]
    assert len(notes) == (not mirrored)
    assert all('set data.flip_pairs' in note and '[[0,0]]' in note for note in notes)


def test_declared_pairs_are_mirrored(opened, configure):
    opened(categories(NUMBERED))
    for pairs in ('[[1,2],[3,4]]', '[[0,0]]'):
        config = dp.prepare(configure(*opened.coco.settings, f'data.flip_pairs={pairs}'))
        assert config['augmentation']['mirror'] == 0.5 and config['test']['mirror']
        assert not any('not mirrored' in line for line in ref.describe(config))


def test_what_a_run_with_mirroring_says(opened, configure):
    """As one that began before, or that sets it: it still mirrors, so the note must not deny it."""
    opened(categories(NUMBERED))
    config = dp.prepare(configure(*opened.coco.settings))
    config['augmentation']['mirror'] = 0.5
    (note,) = [line for line in ref.describe(config) if 'say left and right' in line]
    assert 'not mirrored' not in note and note.startswith(
        'note: the names of the joints do not say left and right, but photos are mirrored'
    )


def test_joints_without_a_pair_are_named(opened, configure):
    names = ['pelvis', *(f'{side}_{joint}' for side in ('left', 'right') for joint in 'abcdefgh')]
    opened(categories(names))
    text = ref.describe(dp.prepare(configure(*opened.coco.settings)))[0]
    assert text.endswith('; in the middle: pelvis') and 'mirrored: left_a/right_a, ' in text


# --- coordinates ---


def shares(entry):
    values = np.reshape(entry['keypoints'], (17, 3)) / [200, 160, 1]
    return values.flatten().tolist()


@pytest.mark.parametrize('change, words', [
    (each(keypoints=shares, area=0.02, bbox=[0, 0, 0.2, 0.2]), 'all joints lie between 0 and 1'),
    (each(keypoints=[50, 60, 2] * 17), "all of a person's joints lie on one pixel"),
    (each(keypoints=[0, 0, 0] + [50, 60, 2] * 16), "all of a person's joints lie on one pixel"),
    (each(keypoints=[50, 60, 2] * 2 + [9, 9, 0] * 15), "all of a person's joints lie on one pixel"),
    (each(keypoints=[300, 400, 2] * 10 + [50, 60, 2] * 7), '59% of the joints lie outside'),
    (each(), ''),
])  # fmt: skip
def test_coordinates_that_are_no_pixels_are_noted(opened, change, words):
    split, _ = opened(change)
    notes = [note for note in describe(split) if ' area' not in note]
    assert len(notes) == bool(words) and all(words in note for note in notes)


# --- photos that carry a turn ---


def turn(path, number):
    """Puts an EXIF orientation into a JPEG."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[274] = number
        image.save(path, exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize('orientation', [3, 6, 8])
@pytest.mark.parametrize('drawn', [False, True])
def test_a_turned_photo_is_read_in_the_frame_of_its_annotations(opened, orientation, drawn):
    """By the size that fits; where both fit, COCO's frame is the stored one, ours the upright."""
    path = opened.coco.path(900001)
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    turn(path, orientation)
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    upright = np.rot90(stored, turns)
    readings = [(160, 200), (200, 160)] if orientation != 3 else [(160, 200)]
    for height, width in readings:

        def change(content, height=height, width=width):
            content['images'][0] |= {'height': height, 'width': width}
            content['images'][0] |= {'drawn': 'a.jpg'} if drawn else {}

        split, _ = opened(change)
        photo = split.read(split.ids.tolist().index(900001))
        takes_upright = drawn if orientation == 3 else (height, width) == (200, 160)
        wanted = upright if takes_upright else stored
        assert photo.shape == wanted.shape
        gaps = [np.abs(photo.astype(int) - one).mean() for one in (wanted, np.rot90(wanted, 2))]
        assert gaps[0] < 8 and gaps[0] < 0.5 * gaps[1]  # it was saved twice as JPEG
        (note,) = [line for line in describe(split) if 'EXIF' in line]
        frame, other = ('upright', 'as stored') if drawn else ('as stored', 'upright')
        assert note == (
            f'note: {split.file}: EXIF turns 1 of 2 photos looked at: they are read {frame}, or '
            f'{other} where only that fits their width and height'
        )


@pytest.mark.filterwarnings('error')
def test_photos_of_nobody_need_no_note(opened):
    _, validation = opened(lambda content: content['annotations'].pop())
    assert describe(validation) == [] and not validation.count_people().any()


def test_few_of_many_photos_are_looked_at(opened, monkeypatch):
    for image_id in opened.coco.train_ids:
        turn(opened.coco.path(image_id), 3)
    split, _ = opened()
    monkeypatch.setattr('data.coco_pose.splits.LOOKED_AT', 3)
    many = split.select(np.arange(50) % 2)
    assert [line for line in describe(many) if 'EXIF turns 3 of 3 photos looked at' in line]


def test_plain_photos_carry_no_turn(opened):
    turn(opened.coco.path(900001), 1)
    split, _ = opened()
    assert describe(split) == []


@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_avif_is_turned(tmp_path, orientation):
    """OpenCV never turns it."""
    colours = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    path, exif = tmp_path / 'a.avif', Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(colours.repeat(16, 0).repeat(16, 1))
    stored.save(path, exif=exif, quality=95)
    transposed = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    upright = stored if orientation == 1 else stored.transpose(transposed[orientation])
    for wanted, photo in (
        (stored, read_photo(path)), (upright, read_photo(path, upright=True)),
        (upright, read_photo(path, np.array(upright.size[::-1]), upright=True)),
    ):  # fmt: skip
        assert np.abs(photo.astype(int) - np.asarray(wanted)).mean() < 12
