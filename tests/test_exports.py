"""What annotation tools export: read as what it means, or refused with the tool's name.

The files are written here as those tools write them: their own names, ids, gaps and folders.
"""

import json

import cv2
import numpy as np
import pytest

from data.coco_pose import dp, ref
from data.coco_pose.splits import describe, open_splits
from utils.errors import UserError

NAMES = ['head', 'left_hand', 'right_hand', 'left_foot', 'right_foot']
LIMBS = [[1, 2], [1, 3], [1, 4], [1, 5]]  # counted from 1
PEOPLE = [[30, 8, 2, 10, 30, 2, 50, 30, 1, 20, 70, 2, 0, 0, 0],
          [60, 10, 2, 52, 30, 2, 80, 31, 2, 55, 72, 2, 78, 70, 2]]  # fmt: skip
WIDTH, HEIGHT = 100, 80


@pytest.fixture
def put(tmp_path):
    """put(name, content, photos): a file, JSON unless it is text or bytes, and its photos."""

    def write(name, content, photos=()):
        path = tmp_path / name
        for file in (path, *(tmp_path / photo for photo in photos)):
            file.parent.mkdir(parents=True, exist_ok=True)
        for photo in photos:
            cv2.imwrite(str(tmp_path / photo), np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
        if isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            path.write_text(json.dumps(content), encoding='utf-8')
        return path

    return write


def settings_of(file, images):
    paths = (f'data.annotations={file}', f'data.valid_annotations={file}', f'data.images={images}')
    return [*paths, f'data.valid_images={images}']


def cvat(keypoints=PEOPLE):
    """COCO Keypoints 1.0: skeletons, and rectangles of another label; names may be numbers."""
    kinds = [
        {'id': 1, 'name': 'box', 'supercategory': '', 'keypoints': [], 'skeleton': []},
        {'id': 2, 'name': 'person', 'supercategory': '', 'keypoints': NAMES, 'skeleton': LIMBS},
    ]
    image = {'id': 1, 'width': WIDTH, 'height': HEIGHT, 'file_name': 'a b/1.jpg', 'license': 0,
             'flickr_url': '', 'coco_url': '', 'date_captured': 0}  # fmt: skip
    people = [
        {'id': n, 'image_id': 1, 'category_id': 2, 'segmentation': [], 'area': 2480.0,
         'bbox': [10.0, 8.0, 40.0, 62.0], 'iscrowd': 0, 'keypoints': values, 'num_keypoints': 4,
         'attributes': {'occluded': False, 'keyframe': False}}
        for n, values in enumerate(keypoints, 1)
    ]  # fmt: skip
    return {'licenses': [{'name': '', 'id': 0, 'url': ''}], 'info': {'contributor': ''},
            'categories': kinds, 'images': [image], 'annotations': people}  # fmt: skip


def coco_annotator():
    """Every field of its data base; no box and no area around people without an outline."""
    kind = {
        'id': 3,
        'name': 'person',
        'supercategory': '',
        'color': '#e95b24',
        'metadata': {},
        'creator': 'me',
        'keypoint_colors': [],
        'keypoints': NAMES,
        'skeleton': LIMBS,
    }
    other = {'id': 4, 'name': 'ball', 'supercategory': '', 'color': '#000000', 'metadata': {}}
    image = {'id': 7, 'dataset_id': 1, 'category_ids': [3], 'path': '/datasets/x/1.jpg',
             'width': WIDTH, 'height': HEIGHT, 'file_name': '1.jpg', 'annotated': False,
             'annotating': [], 'num_annotations': 2, 'metadata': {}, 'milliseconds': 9,
             'events': [], 'regenerate_thumbnail': False}  # fmt: skip
    people = [
        {'id': n, 'image_id': 7, 'category_id': 3, 'dataset_id': 1, 'segmentation': [], 'area': 0,
         'bbox': [0, 0, 0, 0], 'iscrowd': False, 'isbbox': False, 'creator': 'me', 'width': WIDTH,
         'height': HEIGHT, 'color': '#f', 'keypoints': values, 'metadata': {}, 'num_keypoints': 4}
        for n, values in enumerate(PEOPLE)
    ]  # fmt: skip
    ball = {'id': 9, 'image_id': 7, 'category_id': 4, 'segmentation': [[1, 1, 9, 1, 9, 9]],
            'area': 32, 'bbox': [1, 1, 8, 8], 'iscrowd': False, 'isbbox': False}  # fmt: skip
    return {'images': [image], 'categories': [kind, other], 'annotations': [*people, ball]}


def roboflow():
    """Ids from 0, a category that groups the others, and its `_annotations.coco.json`."""
    kinds = [
        {'id': 0, 'name': 'people-Qg7R', 'supercategory': 'none'},
        {'id': 1, 'name': 'person', 'supercategory': 'people-Qg7R', 'keypoints': NAMES,
         'skeleton': LIMBS},
    ]  # fmt: skip
    image = {'id': 0, 'license': 1, 'file_name': '1_jpg.rf.21d9ecc5.jpg', 'height': HEIGHT,
             'width': WIDTH, 'date_captured': '2024-09-10T07:12:44+00:00',
             'extra': {'name': '1.jpg'}}  # fmt: skip
    people = [
        {'id': n, 'image_id': 0, 'category_id': 1, 'bbox': [10, 8, 40, 62], 'area': 2480,
         'segmentation': [], 'iscrowd': 0, 'keypoints': values}
        for n, values in enumerate(PEOPLE)
    ]  # fmt: skip
    return {'info': {'description': 'Exported from roboflow.com'}, 'licenses': [],
            'categories': kinds, 'images': [image], 'annotations': people}  # fmt: skip


def label_studio():
    """Its COCO: rectangles beside one person a photo, whose category is called 'default'."""
    kinds = [{'id': 0, 'name': 'person'},
             {'id': 1, 'name': 'default', 'supercategory': 'default', 'keypoints': NAMES,
              'skeleton': []}]  # fmt: skip
    photos = [f'images/5f{n}-1.jpg' for n in range(2)]
    images = [{'width': WIDTH, 'height': HEIGHT, 'id': n, 'file_name': name}
              for n, name in enumerate(photos)]  # fmt: skip
    rectangle = {'id': 0, 'image_id': 0, 'category_id': 0, 'segmentation': [], 'ignore': 0,
                 'bbox': [9.5, 7.5, 42.0, 64.0], 'iscrowd': 0, 'area': 2688.0}  # fmt: skip
    people = [
        {'id': n + 1, 'image_id': n, 'category_id': 1, 'keypoints': values, 'num_keypoints': 4,
         'bbox': [10, 8, 40, 62], 'iscrowd': 0}
        for n, values in enumerate(PEOPLE)
    ]  # fmt: skip
    return {'images': images, 'categories': kinds, 'annotations': [rectangle, *people],
            'info': {'contributor': 'Label Studio'}}  # fmt: skip


def fiftyone():
    """Its COCO, keypoints alone: no names of joints, and neither box nor area."""
    image = {'id': 1, 'file_name': '1.jpg', 'height': HEIGHT, 'width': WIDTH, 'license': None,
             'coco_url': None}  # fmt: skip
    people = [
        {'id': n, 'image_id': 1, 'category_id': 0, 'bbox': None, 'segmentation': None,
         'area': None, 'iscrowd': 0, 'keypoints': values, 'num_keypoints': 4}
        for n, values in enumerate(PEOPLE, 1)
    ]  # fmt: skip
    kind = {'id': 0, 'name': 'person', 'supercategory': None}
    return {'info': {'description': 'Exported from FiftyOne'}, 'licenses': [],
            'categories': [kind], 'images': [image], 'annotations': people}  # fmt: skip


EXPORTS = {
    'cvat': (cvat, 'annotations/person_keypoints_default.json', 'images',
             ['images/default/a b/1.jpg'], 2480),
    'coco-annotator': (coco_annotator, 'x-1.json', 'x', ['x/1.jpg'], 0.53 * 40 * 62),
    'roboflow': (roboflow, 'train/_annotations.coco.json', 'train',
                 ['train/1_jpg.rf.21d9ecc5.jpg'], 2480),
    'label studio': (label_studio, 'result.json', '', ['images/5f0-1.jpg', 'images/5f1-1.jpg'],
                     0.53 * 40 * 62),
    'fiftyone': (fiftyone, 'labels.json', 'data', ['data/1.jpg'], 0.53 * 40 * 62),
}  # fmt: skip


def put_export(tool, put, tmp_path):
    make, name, images, photos, area = EXPORTS[tool]
    settings = settings_of(put(name, make(), photos), tmp_path / images)
    if tool == 'fiftyone':  # which names no joints
        settings.append(f'data.joints={json.dumps(NAMES)}')
    return settings, area


@pytest.mark.parametrize('tool', EXPORTS)
def test_an_export_is_read_as_what_it_means(tool, put, tmp_path, configure):
    settings, area = put_export(tool, put, tmp_path)
    config = dp.prepare(configure(*settings))
    assert config['data']['joints'] == NAMES
    assert config['data']['flip_pairs'] == [[1, 2], [3, 4]]
    limbs = [] if tool in ('label studio', 'fiftyone') else [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert config['data']['skeleton'] == limbs
    split, _ = open_splits(config['data'])
    people = np.concatenate([split.people(number) for number in range(len(split))])
    assert split.keypoints[people].reshape(2, -1).tolist() == PEOPLE
    assert split.areas[people[0]] == pytest.approx(area)
    assert split.read(0).shape == (HEIGHT, WIDTH, 3)
    notes = [note for note in describe(split) if 'it is estimated' not in note]
    assert notes == []


@pytest.mark.parametrize('tool', ['cvat', 'roboflow', 'label studio'])
def test_an_export_trains(tool, put, tmp_path, work, tiny, call_script):
    settings, _ = put_export(tool, put, tmp_path)
    small = [setting for setting in tiny if 'oup_dim' not in setting]
    done = call_script('train.py', '-e', 'new', '--set', *settings, *small)
    assert done.returncode == 0, done.stderr
    assert 'joints: head, left_hand' in done.stdout


# --- what is no COCO file of keypoints ---

POINT = {'x': 10.0, 'y': 20.0, 'width': 0.5, 'keypointlabels': ['head']}
TASK = {'id': 1, 'annotations': [{'id': 3, 'completed_by': 1, 'result': [
    {'original_width': 100, 'original_height': 80, 'value': POINT, 'type': 'keypointlabels'}]}],
    'data': {'image': '/data/upload/1/5f-1.jpg'}}  # fmt: skip
LABELME = {'version': '5.2.1', 'flags': {}, 'shapes': [
    {'label': 'head', 'points': [[30.0, 8.0]], 'group_id': 1, 'shape_type': 'point', 'flags': {}}],
    'imagePath': '1.jpg', 'imageData': None, 'imageHeight': 80, 'imageWidth': 100}  # fmt: skip
LABELME2COCO = {
    'images': [{'height': 80, 'width': 100, 'id': 1, 'file_name': '1.jpg'}],
    'annotations': [{'iscrowd': 0, 'image_id': 1, 'bbox': [1, 1, 9, 9], 'category_id': 0, 'id': 1,
                     'segmentation': [[1, 1, 9, 1, 9, 9]], 'area': 32}],
    'categories': [{'id': 0, 'name': 'person', 'supercategory': 'person'}],
}  # fmt: skip
RECTANGLES = label_studio() | {'annotations': label_studio()['annotations'][:1]}
VIA = {'_via_settings': {}, '_via_img_metadata': {'1.jpg9': {'filename': '1.jpg', 'regions': []}}}


@pytest.mark.parametrize('content, words', [
    ([TASK], "is Label Studio's own JSON, .*model_index, and export COCO"),
    ([{'image': 'x', 'kp': [POINT], 'id': 1, 'annotator': 1}], "is Label Studio's own JSON"),
    (LABELME, 'is a file of labelme, of one photo, not COCO keypoints: .*COCO Keypoints 1.0'),
    (json.dumps(LABELME, indent=2).encode('utf-8-sig'), 'is a file of labelme, of one photo'),
    (LABELME2COCO, 'has no keypoints: .*export the file again as COCO keypoints: in CVAT'),
    (RECTANGLES, 'has no keypoints'),
    ('0 0.5 0.5 0.4 0.8 0.3 0.1 2 0.1 0.375 2\n', 'is a file of YOLO, .*COCO Keypoint'),
    ('path: ../data\ntrain: images/train\nval: images/val\nkpt_shape: [17, 3]\n', 'a file of YOLO'),
    ('# my own data\n\nnames:\n  0: person\n', 'is a file of YOLO'),
    ('<?xml version="1.0"?>\n<annotations/>', 'is XML, as of CVAT .*COCO Keypoints 1.0'),
    (b'PK\x03\x04rest', 'is a zip file, .*: unpack it'),
    (VIA, 'is a project of VIA, .*export'),
    ([{'image_id': 1, 'category_id': 1, 'keypoints': PEOPLE[0], 'score': 1.0}],
     'is a list of detections, as of dt.json, .*: choose'),
    ({'images': [{'id': 1, 'file_name': '/label-studio/data/1.jpg'}]}, 'a path inside images'),
    (fiftyone(), r'expected 51 keypoint values of a person, found 15; name its joints: --set'),
    ([1, 2], 'is not a COCO file of keypoints: '),
    ('{"images": [', 'cannot be read as JSON'),
])  # fmt: skip
def test_other_files_are_refused_with_what_to_do(content, words, put, tmp_path, configure):
    file = put('x/labels.json', content, ['x/1.jpg'])
    with pytest.raises(UserError, match=words) as error:
        open_splits(dp.prepare(configure(*settings_of(file, tmp_path / 'x')))['data'])
    assert str(error.value).startswith(str(file))


def test_single_points_of_cvat_are_noted(put, tmp_path, configure):
    """Its skeleton of one point has a box and an area of 0."""
    content = cvat([PEOPLE[0][:3] + [0] * 12])
    content['annotations'][0] |= {'area': 0.0, 'bbox': [30.0, 8.0, 0.0, 0.0]}
    file = put('annotations/person_keypoints_default.json', content, ['images/default/a b/1.jpg'])
    split, _ = open_splits(dp.prepare(configure(*settings_of(file, tmp_path / 'images')))['data'])
    assert any('without an area' in note for note in describe(split))


def test_numbered_joints_of_cvat_are_not_mirrored(put, tmp_path, configure):
    content = cvat()
    content['categories'][1]['keypoints'] = [str(number) for number in range(1, 6)]
    file = put('annotations/person_keypoints_default.json', content, ['images/default/a b/1.jpg'])
    config = dp.prepare(configure(*settings_of(file, tmp_path / 'images')))
    assert config['augmentation']['mirror'] == 0
    assert any('photos are not mirrored' in line for line in ref.describe(config))
