"""MPII's annotations as a COCO file, and files of other public data sets, as users set them."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.coco_pose import ref
from data.coco_pose.annotations import read_file
from data.mpii import JOINTS

EMPTY = np.zeros((0, 0))


def struct(*entries):
    """A MATLAB struct array of dicts, whose fields may differ."""
    fields = list(dict.fromkeys(key for entry in entries for key in entry))
    array = np.empty((1, len(entries)), [(field, object) for field in fields])
    for place, entry in enumerate(entries):
        for field in fields:
            array[0, place][field] = entry.get(field, EMPTY)
    return array


def points(*joints):
    """MPII's annopoints of (id, x, y, is_visible)."""
    made = [{'x': float(x), 'y': float(y), 'id': i, 'is_visible': v} for i, x, y, v in joints]
    return struct({'point': struct(*made)})


@pytest.fixture
def mat(work):
    """MPII's file with its oddities, and its photos, 64 x 48."""
    io = pytest.importorskip('scipy.io')
    head = {'x1': 10.0, 'y1': 10.0, 'x2': 13.0, 'y2': 14.0}
    body = [(i, 5 + i, 41, '1') for i in range(8)]
    place = {'objpos': struct({'x': 31.0, 'y': 21.0}), 'scale': 0.1}
    photos = [
        struct(  # a whole person, one of two joints, and one without joints
            head | place | {'annopoints': points(*body, (8, 11, 6, EMPTY), (9, 12.5, 2, ''))},
            head | {'annopoints': points((0, 40, 30, '0'), (1, 42, 20, 1))},
            place | {'annopoints': EMPTY},
        ),
        struct(place),  # of the test set
        EMPTY,
        struct(head | {'annopoints': points((15, 60, 30, 0))}),
        struct({'x1': 3.0}),  # which tells nothing
    ]
    annolist = struct(*(
        {'image': struct({'name': f'{number}.png'}), 'annorect': rects, 'vididx': number}
        for number, rects in enumerate(photos, 8)
    ))  # fmt: skip
    apart = np.empty((5, 1), object)
    apart[:, 0] = [np.array([[1], [3]]), EMPTY, EMPTY, 1, EMPTY]
    train = np.array([[1, 0, 1, 1, 1]])
    release = struct({'annolist': annolist, 'img_train': train, 'single_person': apart})
    io.savemat('mpii.mat', {'RELEASE': release})
    for number in range(8, 13):
        cv2.imwrite(f'{number}.png', np.zeros((48, 64, 3), np.uint8))
    return Path('mpii.mat')


def test_mpii_becomes_a_coco_file(mat, call_script):
    done = call_script('data/mpii.py', mat, 'mpii.json', '--images', '.')
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'mpii.json: 4 photos, 3 people with joints\n'
    content = json.loads(Path('mpii.json').read_text())
    assert [image['file_name'] for image in content['images']] == [
        *('8.png', '10.png', '11.png', '12.png')
    ]
    assert all((i['width'], i['height']) == (64, 48) for i in content['images'])
    first, second, crowd, other = content['annotations']
    joints = np.reshape(first['keypoints'], (16, 3))
    assert joints[1].tolist() == [5, 40, 2] and joints[9].tolist() == [11.5, 1, 2]
    assert joints[8].tolist() == [10, 5, 2] and not joints[10:].any()
    assert np.reshape(second['keypoints'], (16, 3))[:2].tolist() == [[39, 29, 1], [41, 19, 2]]
    assert first['head_size'] == pytest.approx(3) and 'head_size' not in crowd
    assert [a['single_person'] for a in content['annotations']] == [True, False, True, True]
    assert [a['iscrowd'] for a in content['annotations']] == [0, 0, 1, 0]
    assert crowd['bbox'] == [20, 10, 20, 20] and other['image_id'] == 4
    split = read_file('mpii.json')
    assert split.category['keypoints'] == list(JOINTS) and split.count_people().tolist() == [
        *(2, 0, 1, 0)
    ]


def test_videos_are_held_out_as_a_whole(mat, call_script):
    done = call_script('data/mpii.py', mat, 'mpii.json', '--valid', 'valid.json')
    assert done.returncode == 0, done.stderr
    train, valid = (json.loads(Path(n).read_text()) for n in ('mpii.json', 'valid.json'))
    assert [image['id'] for image in valid['images']] == [3] and valid['annotations'] == []
    assert [image['id'] for image in train['images']] == [1, 4, 5]
    assert 'width' not in train['images'][0]


def test_what_is_no_file_of_mpii(mat, call_script, monkeypatch):
    from scipy.io import savemat

    savemat('other.mat', {'a': 1})
    Path('text.mat').write_text('no matrix')
    for arguments, words in (
        (['gone.mat', 'a.json'], 'gone.mat cannot be read'),
        (['text.mat', 'a.json'], 'text.mat is no annotation file of MPII'),
        (['other.mat', 'a.json'], 'other.mat is no annotation file of MPII'),
        ([mat, 'a.json', '--images', 'nowhere'], 'cannot read photo nowhere/8.png'),
    ):
        done = call_script('data/mpii.py', *arguments)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1
    assert not Path('a.json').exists()


def test_without_scipy_the_error_says_what_to_install(work, call_script, monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    done = call_script('data/mpii.py', 'mpii.mat', 'a.json')
    assert done.returncode == 2 and 'pip install -r requirements-extra.txt' in done.stderr


# --- README's table of other data ---


def named(content, names, **further):
    """A COCO file's content with these joints, and with fields of a person that COCO lacks."""
    people = []
    for entry in content['annotations']:
        keypoints = np.resize(entry['keypoints'], 3 * len(names)).tolist()
        people.append(entry | further | {'keypoints': keypoints})
    limbs = [[16, 14], [14, 12], [17, 15]]  # as COCO's, also where there are fewer joints
    category = {'id': 1, 'name': 'person', 'keypoints': names, 'skeleton': limbs}
    return content | {'annotations': people, 'categories': [category]}


def commands(name):
    """The commands of a row of README's table, as words."""
    readme = Path(__file__).parent.parent.joinpath('README.md').read_text('utf-8')
    (row,) = (line for line in readme.splitlines() if line.startswith(f'| [{name}]'))
    return [shlex.split(part) for part in re.findall('`(python .*?)`', row)]


@pytest.mark.parametrize('name', ['CrowdPose', 'OCHuman', 'COCO-WholeBody', 'MPII'])
def test_other_data_as_readme_says(request, run1, make_coco, call_script, tiny, name):
    """Each command on small files in the format of the data."""
    names = list(ref.COCO.names)
    if name == 'CrowdPose':
        names = [*names[5:], 'head', 'neck']
        files = 'crowdpose/crowdpose_train.json', 'crowdpose/crowdpose_val.json'
        folders, further = ['crowdpose/images'] * 2, {}
    elif name == 'OCHuman':
        files = ['OCHuman/ochuman_coco_format_val_range_0.00_1.00.json']
        folders, further = ['OCHuman/images'], {'segmentation': []}
    elif name == 'COCO-WholeBody':
        files = [f'coco_wholebody_{part}_v1.0.json' for part in ('train', 'val')]
        folders = 'train2017', 'val2017'
        further = {'foot_kpts': [0] * 18, 'face_box': [0.0] * 4, 'lefthand_kpts': [0] * 63,
                   'foot_valid': False}  # fmt: skip
    else:
        request.getfixturevalue('mat').rename('mpii_human_pose_v1_u12_1.mat')
        Path('mpii').mkdir()
        for photo in Path().glob('*.png'):
            shutil.move(photo, 'mpii')
        files = folders = ()
    for number, (file, folder) in enumerate(zip(files, folders, strict=True)):
        ids = 900001 + 10 * number
        coco = make_coco(f'made{number}', people=(1, 2), valid=(), inside=True, first_id=ids)
        shutil.copytree(coco.images, folder, dirs_exist_ok=True)
        Path(file).write_text(json.dumps(named(coco.content, names, **further)))
    for words in commands(name):
        script = words[1] if words[1] != '-m' else words[2].replace('.', '/') + '.py'
        given = words[2 + (words[1] == '-m') :] + ['--set', *tiny] * (script == 'train.py')
        done = call_script(script, *given)
        assert done.returncode == 0, done.stderr
    if name in ('CrowdPose', 'MPII'):
        log = Path('exp', words[words.index('-e') + 1], 'log').read_text()
        assert '_shoulder/' in log  # a mirror pair
        assert ('no OKS sigma' in log) == (name == 'MPII')
