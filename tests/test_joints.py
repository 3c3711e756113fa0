"""Other joints than COCO's: from the annotation file or the config to training, AP and pictures."""

import ast
import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.cocoeval import Params
from test_imports import SOURCES

import test
from data import synthetic
from data.coco_pose import dp, ref
from data.coco_pose.results import coco_scores, to_coco
from data.coco_pose.splits import open_valid
from task import pose, quickstart
from utils.config import apply_settings
from utils.errors import UserError

FIVE, CROWDPOSE = (synthetic.SETS[name][0] for name in ('five', 'crowdpose'))
HANDS = ('nose', 'left_wrist', 'right_wrist', 'left_ankle', 'right_ankle')
FAR_APART = [0, 9, 10, 15, 16, 7, 8, 5, 6, 11, 12, 13, 14, 1]  # of COCO's joints, first HANDS
SEE_PEOPLE = ('test.detection_val=-9.0', 'test.max_num_people=4')  # in anything, untrained
SMALL = ('data.drawn.pictures=[26,13]', 'data.drawn.size=96')


def settings_of(**lists):
    """A config's 'data' with these lists."""
    return pose.__config__['data'] | lists


def config_of(**lists):
    """A config with these lists in its 'data'."""
    return pose.__config__ | {'data': settings_of(**lists)}


def rename(coco, names, category_id=7, **category):
    """Leaves as many joints of a drawn file, under other names that its one category tells."""
    for entry in coco.content['annotations']:
        entry['category_id'] = category_id
        joints = np.array(entry['keypoints']).reshape(-1, 3)[FAR_APART[: len(names)]]
        entry['keypoints'] = joints.flatten().tolist()
        entry['num_keypoints'] = sum(v > 0 for v in entry['keypoints'][2::3])
    kind = {'id': category_id, 'name': 'person', 'keypoints': list(names)}
    coco.content['categories'] = [kind | category]
    coco.annotations.write_text(json.dumps(coco.content))
    return coco


@pytest.fixture
def hands(make_coco):
    """A file of four photos with five joints, whose category has the number 7."""
    return rename(make_coco(people=(1, 2), valid=(2, 1)), HANDS, skeleton=[[1, 2], [1, 3]])


def own(coco):
    """All that a user sets: where the photos and annotations are."""
    return [*coco.settings, f'data.valid_annotations={coco.annotations}']


# --- the table ---


def test_cocos_joints():
    assert ref.flip_by_names(ref.COCO.names) == ref.COCO.flip
    assert ref.COCO.sigmas == tuple(Params('keypoints').kpt_oks_sigmas)
    assert ref.get_joints(settings_of()) == ref.COCO
    given = settings_of(joints=list(ref.COCO.names))
    assert ref.get_joints(given) == ref.COCO


@pytest.mark.parametrize(
    'names, flip',
    [
        (('head', 'left_hand', 'right_hand'), (0, 2, 1)),
        (('l_hand', 'r_hand', 'l_foot', 'r_foot'), (1, 0, 3, 2)),
        (('Left-Hand', 'Right-Hand', 'Head'), (1, 0, 2)),
        (('L', 'R'), (1, 0)),
        (('hand_left', 'hand_right', 'foot_l', 'foot_r'), (1, 0, 3, 2)),
        (('LEFT HAND', 'right hand'), (1, 0)),
        (('leftHand', 'rightHand', 'LFoot', 'RFoot'), (1, 0, 3, 2)),
        (('leftfoot', 'rightfoot', 'handleft', 'handright'), (1, 0, 3, 2)),
        (('rank', 'lank', 'lip', 'upright'), (1, 0, 2, 3)),  # as in MPII; not every l is a left
        (('beak', 'tail'), (0, 1)),
    ],
)
def test_mirror_pairs_by_names(names, flip):
    assert ref.get_joints(settings_of(joints=names)).flip == flip


@pytest.mark.parametrize('names', [('left_hand', 'head'), ('left_hand', 'l_hand', 'right_hand')])
def test_a_side_without_its_other(names):
    with pytest.raises(UserError, match=r'data\.flip_pairs'):
        ref.get_joints(settings_of(joints=names))
    joints = ref.get_joints(settings_of(joints=names, flip_pairs=[[0, 0]]))
    assert joints.flip == tuple(range(len(names)))


def test_what_the_config_does_not_say():
    joints = ref.get_joints(settings_of(joints=CROWDPOSE))
    assert joints.sigmas[:2] == ref.COCO.sigmas[5:7]  # shoulders
    assert joints.sigmas[12:] == (0.05, 0.05)  # head and neck
    assert joints.skeleton == () and joints.order == tuple(range(len(CROWDPOSE)))
    text = '\n'.join(ref.describe(config_of(joints=CROWDPOSE)))
    assert 'no OKS sigma for head, neck' in text and 'left_hip/right_hip' in text
    assert ref.describe(config_of()) == []


def test_what_the_config_says():
    lists = {'skeleton': [[0, 2]], 'flip_pairs': [[0, 2]], 'sigmas': [0.1, 0.2, 0.3]}
    settings = settings_of(joints=['a', 'b', 'c'], joint_order=[2, 0, 1], **lists)
    joints = ref.get_joints(settings)
    wanted = ref.Joints(('a', 'b', 'c'), (2, 1, 0), ((0, 2),), (0.1, 0.2, 0.3), (2, 0, 1))
    assert joints == wanted
    assert 'note' not in ''.join(ref.describe(pose.__config__ | {'data': settings}))


@pytest.mark.parametrize('task', [pose, quickstart])
@pytest.mark.parametrize('kind, K', [('five', 5), ('crowdpose', 14), ('coco', 17)])
def test_channels_follow_the_number_of_joints(task, kind, K):
    before = copy.deepcopy(task.__config__)
    config = ref.fill_in(task.__config__, synthetic.category(kind), '')
    per_joint = 4 if task is pose else 2
    assert config['model']['oup_dim'] == per_joint * K
    assert len(config['data']['joints']) == len(config['data']['sigmas']) == K
    assert task.__config__ == before
    again = ref.fill_in(config, synthetic.category(kind), '')
    assert again == json.loads(json.dumps(config))


def test_lists_of_any_length_can_be_set():
    texts = {
        'joints': '["a", "b", "c"]',
        'skeleton': '[[0,1],[1,2]]',
        'flip_pairs': '[[0,2]]',
        'sigmas': '[1,0.5,0.1]',
        'joint_order': '[2,1,0]',
    }
    config = apply_settings(pose.__config__, [f'data.{key}={text}' for key, text in texts.items()])
    assert {key: config['data'][key] for key in texts} == {
        key: json.loads(text) for key, text in texts.items()
    }
    assert type(config['data']['sigmas'][0]) is float
    empty = apply_settings(config, [f'data.{key}=[]' for key in texts])
    assert ref.get_joints(empty['data']) == ref.COCO


# --- from a file to a trained network ---


def test_a_file_of_five_joints_trains_and_is_evaluated(hands, work, tiny, call_script):
    """With nothing set but where it is."""
    channels = [setting for setting in tiny if 'oup_dim' not in setting]
    done = call_script('train.py', '-e', 'hands', '--set', *own(hands), *channels)
    assert done.returncode == 0, done.stderr
    assert 'joints: nose, left_wrist' in done.stdout and 'note: COCO has no' not in done.stdout
    config = json.loads((work / 'exp/hands/config.json').read_text())
    assert config['data']['joints'] == list(HANDS)
    assert config['data']['skeleton'] == [[0, 1], [0, 2]]  # in COCO's files joints count from 1
    assert config['data']['flip_pairs'] == [[1, 2], [3, 4]]
    assert config['data']['sigmas'] == pytest.approx([0.026, 0.062, 0.062, 0.089, 0.089])
    assert config['data']['joint_order'] == [0, 1, 2, 3, 4]
    assert config['model']['oup_dim'] == 4 * 5
    done = call_script('train.py', '-c', 'hands', '--set', 'train.epochs=2')
    assert done.returncode == 0, done.stderr
    done = call_script('test.py', '-c', 'hands', '--vis', 2, '--set', *SEE_PEOPLE)
    assert done.returncode == 0, done.stderr
    entries = json.loads((work / 'exp/hands/dt.json').read_text())
    assert entries and all(entry['category_id'] == 7 for entry in entries)
    assert all(len(entry['keypoints']) == 3 * 5 for entry in entries)
    pictures = list((work / 'exp/hands/vis').glob('*.jpg'))
    assert len(pictures) == 2 and cv2.imread(str(pictures[0])).std() > 10
    people, scores = test.multiperson(np.zeros((40, 60, 3), np.uint8), test.load('hands'))
    assert people.shape[1] == 5 and len(people) == len(scores)


@pytest.mark.parametrize('kind, K', [('five', 5), ('crowdpose', 14)])
def test_drawn_sets_train_and_are_evaluated(kind, K, work, tiny, call_script):
    channels = [setting for setting in tiny if 'oup_dim' not in setting]
    chosen = ['--set', *channels, *SMALL, f'data.drawn.joints={kind}']
    done = call_script('train.py', '-t', 'quickstart', '-e', kind, *chosen)
    assert done.returncode == 0, done.stderr
    assert 'note: COCO has no OKS sigma for head' in done.stdout
    assert [path.name for path in (work / 'data/cache').iterdir()] == [
        f'people-26-13-96-1-4-0-2-{kind}'
    ]
    config = json.loads((work / 'exp' / kind / 'config.json').read_text())
    names, skeleton = synthetic.SETS[kind]
    assert config['data']['joints'] == list(names)
    assert config['data']['skeleton'] == [list(pair) for pair in skeleton]
    assert config['data']['images'] == '' and config['model']['oup_dim'] == 2 * K
    done = call_script('test.py', '-c', kind, '--set', *SEE_PEOPLE)
    assert done.returncode == 0, done.stderr
    entries = json.loads((work / 'exp' / kind / 'dt.json').read_text())
    assert entries and all(len(entry['keypoints']) == 3 * K for entry in entries)


def test_what_is_set_wins_over_what_follows(hands, work, tiny, call_script):
    lists = ['data.flip_pairs=[[3,4]]', 'data.sigmas=[1,1,1,1,1]', 'data.joint_order=[4,3,2,1,0]']
    done = call_script('train.py', '-e', 'own', '--set', *own(hands), *tiny, *lists)
    assert done.returncode == 0, done.stderr
    config = json.loads((work / 'exp/own/config.json').read_text())
    assert config['model']['oup_dim'] == 34  # which `tiny` sets
    assert config['data']['flip_pairs'] == [[3, 4]] and config['data']['sigmas'] == [1.0] * 5
    assert config['data']['joint_order'] == [4, 3, 2, 1, 0]


def test_names_in_the_config_where_the_file_has_none(hands, work, tiny, call_script):
    del hands.content['categories']
    hands.annotations.write_text(json.dumps(hands.content))
    channels = [setting for setting in tiny if 'oup_dim' not in setting]
    chosen = ['--set', *own(hands), *channels, f'data.joints={list(FIVE)}']
    done = call_script('train.py', '-e', 'own', *chosen)
    assert done.returncode == 0, done.stderr
    config = json.loads((work / 'exp/own/config.json').read_text())
    assert config['data']['joints'] == list(FIVE) and config['model']['oup_dim'] == 4 * 5


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_a_run_meets_annotations_of_other_joints(script, hands, make_coco, work, tiny, call_script):
    call_script('train.py', '-e', 'hands', '--set', *own(hands), *tiny)
    folder = work / 'exp' / 'hands'
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    fives = rename(make_coco('fives', people=(1,), valid=(1,)), FIVE)
    done = call_script(script, '-c', 'hands', '--set', *own(fives))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for words in (fives.annotations, ', '.join(FIVE), ', '.join(HANDS)):
        assert str(words) in done.stderr
    after = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    assert after == before
    mixed = [*hands.settings, f'data.valid_annotations={fives.annotations}']
    done = call_script('train.py', '-e', 'mixed', '--set', *mixed, *tiny)
    assert done.returncode == 2 and ', '.join(FIVE) in done.stderr
    assert not (work / 'exp' / 'mixed').exists()


def test_mirroring_swaps_the_files_own_pairs(hands, configure):
    """A mirrored photo's maps are the plain one's, mirrored, with the sides swapped."""
    still = ('augmentation.rotation=0', 'augmentation.scale=[1,1]', 'augmentation.shift=0')
    sizes = ('train.input_res=128', 'train.output_res=32')
    config = dp.prepare(configure(*own(hands), *still, *sizes))
    split = open_valid(config['data'])
    plain, mirrored = (
        dp.Dataset(split, config['train'], config['augmentation'] | {'mirror': share})
        for share in (0, 1)
    )
    a, b = plain[0, 0]['heatmaps'], mirrored[0, 0]['heatmaps']
    assert a.shape == (5, 32, 32)
    columns = [[m.max(0).argmax() for m in maps] for maps in (a, b[[0, 2, 1, 4, 3]])]
    assert np.abs(np.add(*columns) - 31).max() <= 1 and columns[0] != columns[1]
    assert split.joints.names == HANDS and split.category['id'] == 7


# --- categories ---


def test_categories_without_joints_are_left_out(hands, configure):
    car = {'id': 1, 'name': 'car', 'keypoints': []}
    hands.content['categories'].append(car)
    hands.content['annotations'].append({'image_id': hands.train_ids[0], 'category_id': 1})
    del hands.content['annotations'][0]['category_id']  # a tool left it out: it is no car
    hands.annotations.write_text(json.dumps(hands.content))
    config = dp.prepare(configure(*own(hands)))
    split = open_valid(config['data'])
    assert len(split.keypoints) == len(hands.content['annotations']) - 1
    assert split.category['id'] == 7


def test_categories_of_the_same_joints_are_one_kind(hands, configure):
    """Whoever is found is written with the first one's id, and compared with all of them."""
    hands.content['categories'].append(hands.content['categories'][0] | {'id': 9, 'name': 'child'})
    for entry in hands.content['annotations'][::2]:
        entry['category_id'] = 9
    hands.annotations.write_text(json.dumps(hands.content))
    split = open_valid(dp.prepare(configure(*own(hands)))['data'])
    figures, *_ = coco_scores(split, perfect(split))
    assert figures['AP'] == figures['AR'] == 1.0


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda kind: [kind, {'id': 8, 'name': 'dog', 'keypoints': ['tail']}], ['dog (tail)']),
        (lambda kind: [kind | {'keypoints': ['a', 'a']}], ["['a', 'a']"]),
        (lambda kind: [kind | {'keypoints': 'nose'}], ['categories[0].keypoints']),
        (lambda kind: [kind | {'keypoints': [1, 2, 3, 4, 5]}], ['categories[0].keypoints[0]']),
        (lambda kind: [kind | {'id': 'x'}], ['categories[0].id']),
        (lambda kind: [kind | {'skeleton': [[0, 1]]}], ['[0, 1]', 'from 1 to 5']),
        (lambda kind: [kind | {'skeleton': [[1, 6]]}], ['[1, 6]', 'data.skeleton']),
        (lambda kind: [kind | {'skeleton': 3}], ['skeleton']),
        (lambda kind: [kind | {'keypoints': list(HANDS[:4])}], ['12 keypoint values, found 15']),
        (lambda kind: 'person', ['categories']),
        (lambda kind: [3], ['categories']),
    ],
)  # fmt: skip
def test_categories_that_do_not_do(change, words, hands, work, tiny, call_script):
    hands.content['categories'] = change(hands.content['categories'][0])
    hands.annotations.write_text(json.dumps(hands.content))
    done = call_script('train.py', '-e', 'new', '--set', *own(hands), *tiny)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert not list(work.iterdir())


# --- evaluation and grouping ---


def perfect(split):
    """The annotations of a split as detections, with its own category."""
    detections = []
    for number, image_id in enumerate(split.ids):
        people = split.keypoints[split.annotations(number)]
        scores = np.full(len(people), 0.9)
        detections += to_coco(people, scores, image_id, split.category['id'])
    return detections


@pytest.mark.parametrize('names', [FIVE, CROWDPOSE])
def test_perfect_detections_score_1(names, make_coco, configure):
    coco = rename(make_coco(people=(1, 3, 2), valid=(2, 0, 1)), names)
    split = open_valid(dp.prepare(configure(*own(coco)))['data'])
    figures, *_ = coco_scores(split, perfect(split))
    assert figures['AP'] == figures['AR'] == 1.0
    moved = perfect(split)
    for entry in moved:
        entry['keypoints'] = (
            np.array(entry['keypoints']) + np.tile((4, 0, 0), len(names))
        ).tolist()
    scores = []
    for sigma in (0.01, 0.5):  # they decide how far off is too far
        settings = configure(*own(coco), f'data.sigmas={[sigma] * len(names)}')
        split = open_valid(dp.prepare(settings)['data'])
        scores.append(coco_scores(split, moved)[0]['AP'])
    assert scores[0] < 0.1 and scores[1] > 0.9


def test_coco_is_evaluated_whatever_its_category_is_called(make_coco, configure):
    """A file without names of joints: 17 values are COCO's, and category 4 stays 4."""
    coco = make_coco(people=(1, 2), valid=())
    for entry in coco.content['annotations']:
        entry['category_id'] = 4
    coco.annotations.write_text(json.dumps(coco.content))
    split = open_valid(configure(*own(coco))['data'])
    assert split.category['id'] == 4
    assert coco_scores(split, perfect(split))[0]['AP'] == 1.0


@pytest.mark.parametrize(
    'lists, first',
    [
        ({}, 11),  # COCO's hips come before its elbows
        ({'joints': [f'joint {k}' for k in range(17)]}, 7),  # others come as they are listed
        ({'joints': [f'joint {k}' for k in range(17)], 'joint_order': [*range(16, -1, -1)]}, 11),
        ({'joint_order': [*range(17)]}, 7),
    ],
)
def test_grouping_visits_joints_in_their_order(lists, first, configure):
    """The first joint that is visited starts the first person."""
    config = configure('train.input_res=128', 'train.output_res=32')
    config['data'] = config['data'] | lists
    pred = torch.zeros(1, 34, 32, 32)
    for k, tag in ((7, 0.0), (11, 5.0)):
        pred[0, k, 9, k] = 1
        pred[0, 17 + k, 9, k] = tag
    config['test'] |= {'mirror': False, 'refine': False}
    frames = test.input_frames(128, 128, config, [1.0])
    people, *_ = test.find_people([pred], frames, (128, 128), [1.0], config)
    assert len(people) == 2 and people[0, :, 2].nonzero()[0].tolist() == [first]


# --- the drawings ---


@pytest.mark.parametrize('kind', ['five', 'crowdpose'])
def test_the_same_pictures_carry_other_joints(kind):
    names, _ = synthetic.SETS[kind]
    visible = {'head': [], 'neck': []}
    for seed in range(12):
        image, plain = synthetic.draw_picture(np.random.default_rng(seed), 96, (1, 3))
        other, labelled = synthetic.draw_picture(np.random.default_rng(seed), 96, (1, 3), kind)
        assert (image == other).all() and len(plain) == len(labelled)
        for a, b in zip(plain, labelled, strict=True):
            assert a['segmentation'] == b['segmentation'] and len(b['keypoints']) == 3 * len(names)
            if a['iscrowd']:
                continue
            coco, joints = (np.array(one['keypoints']).reshape(-1, 3) for one in (a, b))
            assert b['num_keypoints'] == (joints[:, 2] > 0).sum()
            for name, joint in zip(names, joints, strict=True):
                if name in ref.COCO.names:
                    assert (joint == coco[ref.COCO.names.index(name)]).all()
                elif name in visible:
                    visible[name].append(joint[2])
    for values in filter(None, visible.values()):
        assert {0, 1, 2} >= set(values) and np.mean(np.array(values) == 2) > 0.3


def test_joints_that_coco_lacks_lie_where_they_should():
    """Of upright people: the head above the eyes, the neck between the shoulders."""
    checked, hidden = 0, 0
    for seed in range(30):
        coco, five, crowdpose = (
            synthetic.draw_picture(np.random.default_rng(seed), 128, (2, 3), kind)[1]
            for kind in ('coco', 'five', 'crowdpose')
        )
        for entries in zip(coco, five, crowdpose, strict=True):
            a, b, c = (np.array(one['keypoints']).reshape(-1, 3) for one in entries)
            body = dict(zip(ref.COCO.names, a, strict=True))
            head, neck = c[CROWDPOSE.index('head')], c[CROWDPOSE.index('neck')]
            assert (head == b[FIVE.index('head')]).all()
            hidden += (head[2] == 1) + (neck[2] == 1)
            shoulders, ankles, ears = (
                np.array([body[f'{side}_{part}'] for side in ('left', 'right')])
                for part in ('shoulder', 'ankle', 'ear')
            )
            if not all(joint[2] for joint in (*shoulders, *ankles, *ears, head, neck)):
                continue
            tall = ankles[:, 1].mean() - head[1]
            if tall < 60:  # lies
                continue
            assert head[1] < ears[:, 1].min() and ears[:, 1].max() < neck[1]
            assert np.hypot(*(neck - shoulders.mean(0))[:2]) < 0.06 * tall
            assert np.hypot(*(head - ears.mean(0))[:2]) < 0.15 * tall
            checked += 1
    assert checked > 20 and hidden > 5


def test_another_set_of_joints_is_another_data_set(tmp_path):
    for first, second in (('coco', 'five'), ('five', 'coco'), ('five', 'crowdpose')):
        folder = tmp_path / f'{first}-{second}'
        synthetic.make(folder, (2, 1), size=64, joints=first)
        synthetic.make(folder, (2, 1), size=64, joints=first)  # is there
        with pytest.raises(FileExistsError):
            synthetic.make(folder, (2, 1), size=64, joints=second)


def test_a_set_that_nobody_draws(work, tiny, call_script):
    chosen = ['--set', *tiny, 'data.drawn.joints=six']
    done = call_script('train.py', '-t', 'quickstart', '-e', 'six', *chosen)
    assert done.returncode == 2 and "'six'" in done.stderr and 'crowdpose' in done.stderr
    assert not list(work.iterdir())


# --- the sources ---


def numbers(source):
    """The numbers that a file's code holds, comments and texts aside, with their lines."""
    tree = ast.parse((Path(__file__).parent.parent / source).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {(node.value, node.lineno) for node in nodes if type(node.value) in (int, float)}


# Where COCO's joints and the configs of networks for them stand. PoseNet's signature is that of
# the method: its default is the network of the published weights.
CONFIGS = ('task/pose.py', 'task/quickstart.py', 'task/small.py')
TABLES = ('data/coco_pose/ref.py', 'models/posenet.py', *CONFIGS)


@pytest.mark.parametrize('source', [source for source in SOURCES if source not in TABLES])
def test_no_file_counts_cocos_joints(source):
    counts = {17, 34, 51, 68}  # joints; heatmaps and tags; values of keypoints; channels
    assert {(value, line) for value, line in numbers(source) if value in counts} == set()


def test_numbers_are_read():
    assert 68 in {value for value, _ in numbers('task/pose.py')}
    assert [value for value, _ in numbers('models/posenet.py') if value in (17, 34, 51, 68)] == [68]
