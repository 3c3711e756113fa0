"""Where COCO lies, and the joints: COCO's, or those that an annotation file names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pycocotools.cocoeval import Params

from utils.errors import UserError

# Where COCO lies: edit these once, or pass `--set data.images=... data.annotations=...`.
# IMAGES holds the folder train2014 or train2017, or the photos themselves. Paths are relative to
# the working folder or, where it has no such file, to the repository.
REPOSITORY = Path(__file__).parents[2]
IMAGES = 'data/coco/images'
ANNOTATIONS = 'data/coco/annotations/person_keypoints_train2014.json'

VALID_IDS = Path(__file__).with_name('valid_id')
UNKNOWN_SIGMA = 0.05  # of joints that COCO lacks; its own range from 0.025 (eyes) to 0.107 (hips)
SIDES = {'left': 'right', 'right': 'left', 'l': 'r', 'r': 'l'}
WHOLE = {'l': 'left', 'r': 'right'}
SET_PAIRS = (
    'set data.flip_pairs to the pairs that a mirrored photo swaps, such as [[1,2],[3,4]], or to'
)


@dataclass(frozen=True)
class Joints:
    """All that is known about K joints; a joint is its place in `names`, from 0.

    flip[k]: what joint k becomes in a mirrored photo. skeleton: limbs, as pairs of joints. sigmas:
    how far apart people put each joint, as COCO's OKS counts it. order: that of grouping, the
    joints most often seen first, or None for HeatmapParser's own, which is COCO's.
    """

    names: tuple
    flip: tuple
    skeleton: tuple
    sigmas: tuple
    order: tuple | None


COCO = Joints(
    names=(
        'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder',
        'left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip',
        'left_knee', 'right_knee', 'left_ankle', 'right_ankle',
    ),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    sigmas=tuple(Params('keypoints').kpt_oks_sigmas.tolist()),
    order=None,
)  # fmt: skip


def find_path(path):
    """The path from the working folder or, where only it has one, from the repository."""
    here, there = Path(path), REPOSITORY / path
    # os.path's functions treat a name that no file can have as one that is missing.
    return there if os.path.exists(there) and not os.path.exists(here) else here


def make_category(names, limbs):
    """COCO's entry of `categories` for joints and the limbs (pairs, from 0) between them."""
    skeleton = [[a + 1, b + 1] for a, b in limbs]  # COCO counts from 1
    return {'id': 1, 'name': 'person', 'keypoints': list(names), 'skeleton': skeleton}


def joint_names(settings):
    """The names of a config's joints; `settings` is its 'data', where [] means COCO's."""
    return tuple(settings.get('joints') or COCO.names)


def get_joints(settings):
    """The Joints of a config's 'data', whose comments say what an empty list means.

    Reads no file. Raises UserError where the lists do not fit one another.
    """
    names = joint_names(settings)
    K = len(names)
    skeleton, pairs, sigmas, order = (
        settings.get(key) or [] for key in ('skeleton', 'flip_pairs', 'sigmas', 'joint_order')
    )
    if len(set(names)) < K:
        raise UserError(f'data.joints are {", ".join(names)}: expected each name once')
    for key, pair in [('skeleton', p) for p in skeleton] + [('flip_pairs', p) for p in pairs]:
        if len(pair) != 2 or not set(pair) <= set(range(K)):
            raise UserError(f'data.{key} has {list(pair)}: expected pairs of joints 0 to {K - 1}')
    if sigmas and (len(sigmas) != K or min(sigmas) <= 0):
        raise UserError(
            f'data.sigmas is {sigmas}: expected {K} numbers above 0, for {", ".join(names)}'
        )
    if order and sorted(order) != list(range(K)):
        raise UserError(f'data.joint_order is {order}: expected each of 0 to {K - 1} once')
    known = dict(zip(COCO.names, COCO.sigmas, strict=True))
    default = COCO if names == COCO.names else Joints(names, (), (), (), tuple(range(K)))
    return Joints(
        names,
        flip=flip_by_pairs(pairs, K) if pairs else default.flip or flip_by_names(names),
        skeleton=tuple(map(tuple, skeleton)) or default.skeleton,
        sigmas=tuple(sigmas) or tuple(known.get(name, UNKNOWN_SIGMA) for name in names),
        order=tuple(order) or default.order,
    )


def flip_by_pairs(pairs, K):
    """What each of K joints becomes in a mirrored photo, from data.flip_pairs. Raises UserError.

    Joints in no pair stay what they are, and so does one that is paired with itself.
    """
    flip = {}
    for a, b in pairs:
        if twice := {a, b} & flip.keys():
            raise UserError(f'data.flip_pairs has joint {min(twice)} more than once: expected once')
        flip |= {a: b, b: a}
    return tuple(flip.get(k, k) for k in range(K))


def flip_by_names(names):
    """What each joint becomes in a mirrored photo, from left and right in the names.

    Sides are words (left_wrist, Wrist-L, rWrist) or stuck to one (leftwrist, rwrist); the latter
    count only where the other side is there. Raises UserError where a left has no right.
    """
    words = [re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W_A-Za-z]+', name) for name in names]
    words = [[WHOLE.get(word.lower(), word.lower()) for word in key] for key in words]
    flip = []
    for k, name in enumerate(names):
        other_side = [SIDES.get(word, word) for word in words[k]]
        matches = [m for m, key in enumerate(words) if key == other_side]
        if other_side == words[k]:  # no word is a side
            stuck = re.compile('^(left|right|l|r)|(left|right)$')
            swapped = stuck.sub(lambda side: SIDES[side[0]], name.lower(), count=1)
            matches = [m for m, other in enumerate(names) if other.lower() == swapped]
        elif len(matches) != 1:
            found = ', '.join(names[m] for m in matches) or 'none'
            raise UserError(
                f'joint {name}: expected one joint for its other side, found {found}; '
                f'{SET_PAIRS} [[{k},{k}]] where there are none'
            )
        flip.append(matches[0] if len(matches) == 1 else k)
    return tuple(m if flip[m] == k else k for k, m in enumerate(flip))


def lacks_pairs(settings):
    """Whether most joints of a config's 'data' have no mirror pair, and none is declared."""
    flip = get_joints(settings).flip
    single = sum(k == m for k, m in enumerate(flip))
    return not settings['flip_pairs'] and single > max(3, len(flip) / 2)


def describe(config):
    """What a run says about its joints if they are not COCO's, as lines."""
    joints = get_joints(config['data'])
    names = joints.names
    if names == COCO.names:
        return []
    pairs = [f'{names[k]}/{names[m]}' for k, m in enumerate(joints.flip) if k < m]
    text = [f'joints: {", ".join(names)}; mirrored: {", ".join(pairs) or "none"}']
    if pairs and (single := [names[k] for k, m in enumerate(joints.flip) if k == m]):
        text[0] += f'; in the middle: {", ".join(single)}'
    if lacks_pairs(config['data']):
        mirrors = config['augmentation']['mirror'] > 0 or config['test']['mirror']
        text.append(
            'note: the names of the joints do not say left and right, '
            f'{"but photos are mirrored" if mirrors else "so photos are not mirrored"}; {SET_PAIRS}'
            ' [[0,0]] if there are none, with augmentation.mirror=0.5 test.mirror=True'
        )
    sigmas = zip(names, joints.sigmas, strict=True)
    if guessed := [n for n, sigma in sigmas if n not in COCO.names and sigma == UNKNOWN_SIGMA]:
        text.append(
            f'note: COCO has no OKS sigma for {", ".join(guessed)}: {UNKNOWN_SIGMA} is assumed, '
            'which AP depends on; set data.sigmas if you know better'
        )
    return text


def check_names(names, wanted, file):
    """Raises UserError where the joints of a file are not those of a config."""
    if tuple(names) != tuple(wanted):
        raise UserError(
            f'{file} has the joints {", ".join(names)}; those of this config are '
            f'{", ".join(wanted)}: use annotations of the same joints, or train a new run on these'
        )


def fill_in(config, category, file, made_for=None):
    """A copy of a config that holds all of its joints, and as many channels as they need.

    category: an entry of `categories`; if it names no joints, the config's own hold. file: where it
    comes from, for errors. made_for: how many joints model.oup_dim is for, where that is not the
    config's own number. Raises UserError.
    """
    settings = dict(config['data'])
    made_for = made_for or len(joint_names(settings))
    if names := category['keypoints']:
        skeleton = category['skeleton'] or ()
        if settings['joints']:
            check_names(names, settings['joints'], file)
        for pair in () if settings['skeleton'] else skeleton:
            if not all(1 <= k <= len(names) for k in pair):
                raise UserError(
                    f'{file}, category {category["name"]}: its skeleton has {list(pair)}, expected '
                    f'pairs of joints from 1 to {len(names)}; correct it, or set data.skeleton'
                )
        settings['joints'] = list(names)
        # COCO's files count joints from 1.
        settings['skeleton'] = settings['skeleton'] or [[a - 1, b - 1] for a, b in skeleton]
    joints = get_joints(settings)
    pairs = [[k, m] for k, m in enumerate(joints.flip) if k < m]
    settings |= {
        'joints': list(joints.names),
        'skeleton': [list(pair) for pair in joints.skeleton],
        'flip_pairs': settings['flip_pairs'] or pairs,
        'sigmas': list(joints.sigmas),
        'joint_order': list(joints.order or ()),
    }
    channels = config['model']['oup_dim'] * len(joints.names) // made_for
    config = config | {'data': settings, 'model': config['model'] | {'oup_dim': channels}}
    if lacks_pairs(settings):  # a mirrored photo would teach that left is right
        config['augmentation'] = config['augmentation'] | {'mirror': 0.0}
        config['test'] = config['test'] | {'mirror': False}
    return config
