"""Joints, COCO's or those that a file names; where COCO lies; how its files and photos are read.

How many joints there are stands here, in the configs and in annotation files, and nowhere else.
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle_mask
from pycocotools.cocoeval import Params

from utils.errors import UserError

# Where COCO lies: edit these once, or pass `--set data.images=... data.annotations=...`.
# IMAGES holds the folder train2014 or train2017, or the photos themselves. Paths are seen from the
# working folder or, where it has nothing there, from the repository.
REPOSITORY = Path(__file__).parents[2]
IMAGES = 'data/coco/images'
ANNOTATIONS = 'data/coco/annotations/person_keypoints_train2014.json'

# In a JPEG; FF 00 is a byte of the pixels, D0 to D7 stand between them, and FF FF is filling.
MARKER = re.compile(rb'\xff([^\x00\xd0-\xd7\xff])', re.DOTALL)
VALID_IDS = Path(__file__).with_name('valid_id')
UNKNOWN_SIGMA = 0.05  # of joints that COCO lacks; its own reach from 0.025 (eyes) to 0.107 (hips)
SIDES = {'left': 'right', 'right': 'left'}
FAR = 1_000_000  # pixels; no coordinate is that large
JPEG, END = b'\xff\xd8', 0xD9  # its first bytes, and the marker at its end
# The markers behind which its size stands; C4, C8 and CC have other uses.
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
MOST_PIXELS = 2**27  # of a photo: 134 million, which take up to a gigabyte while they are decoded
# A path that stays in its folder, and that the system can have: neither absolute nor with '..'.
INSIDE = re.compile(r'(?![/\\]|\w:|(.*[/\\])?\.\.([/\\]|$))[^\0\ud800-\udfff]+', re.DOTALL)


def is_whole(value):
    """Whether a value from a JSON file is a whole number of at most 64 bits."""
    return type(value) is int and abs(value) < 2**63


def are_numbers(values, count):
    """Whether a value from a JSON file is a list of so many numbers that can be coordinates."""
    return (
        type(values) is list
        and len(values) == count > 0
        and {int, float}.issuperset(map(type, values))
        and max(map(abs, values)) < FAR
        and not isnan(sum(values))  # which max may have passed over
    )


# What is read of the entries of an annotation file where they have it, and what it must be.
FIELDS = {
    'images': {
        'id': (is_whole, 'a whole number'),
        'file_name': (lambda v: type(v) is str and INSIDE.fullmatch(v), 'a path inside the folder'),
        'width': (lambda v: is_whole(v) and v > 0, 'pixels, a whole number'),
        'height': (lambda v: is_whole(v) and v > 0, 'pixels, a whole number'),
    },
    'annotations': {
        'image_id': (is_whole, 'a whole number'),
        'iscrowd': (lambda v: type(v) in (int, bool) and v in (0, 1), '0 or 1'),
        'bbox': (lambda v: are_numbers(v, 4) and min(v[2:]) >= 0, '[x, y, width, height]'),
        'area': (lambda v: type(v) in (int, float) and 0 <= v < FAR**2, 'a number from 0'),
    },
}
NEEDED = {'images': ('id', 'file_name'), 'annotations': ('image_id', 'keypoints')}


@dataclass(frozen=True)
class Joints:
    """All that is to be known of K joints; a joint is its place in `names`, from 0.

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
        'nose',
        'left_eye',
        'right_eye',
        'left_ear',
        'right_ear',
        'left_shoulder',
        'right_shoulder',
        'left_elbow',
        'right_elbow',
        'left_wrist',
        'right_wrist',
        'left_hip',
        'right_hip',
        'left_knee',
        'right_knee',
        'left_ankle',
        'right_ankle',
    ),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    sigmas=tuple(Params('keypoints').kpt_oks_sigmas.tolist()),
    order=None,
)  # fmt: skip


def names_of(settings):
    """The names of a config's joints; `settings` is its 'data', where [] means COCO's."""
    return tuple(settings.get('joints') or COCO.names)


def joints_of(settings):
    """The Joints of a config's 'data', whose comments tell what an empty list means.

    Reads no file. Raises UserError where the lists do not fit one another.
    """
    names = names_of(settings)
    K = len(names)
    skeleton, pairs, sigmas, order = (
        settings.get(key) or [] for key in ('skeleton', 'flip_pairs', 'sigmas', 'joint_order')
    )
    if len(set(names)) < K:
        raise UserError(f'data.joints are {", ".join(names)}: expected each name once')
    check_pairs('skeleton', skeleton, K)
    if sigmas and (len(sigmas) != K or not all(0 < sigma < np.inf for sigma in sigmas)):
        raise UserError(
            f'data.sigmas is {sigmas}: expected {K} numbers above 0, one for each of '
            f'{", ".join(names)}'
        )
    if order and sorted(order) != list(range(K)):
        raise UserError(
            f'data.joint_order is {order}: expected each of the joint numbers 0 to {K - 1} once'
        )
    known = dict(zip(COCO.names, COCO.sigmas, strict=True))
    is_coco = names == COCO.names
    return Joints(
        names,
        flip=flip_of(pairs, K) if pairs else COCO.flip if is_coco else flip_by_names(names),
        skeleton=tuple(map(tuple, skeleton)) or (COCO.skeleton if is_coco else ()),
        sigmas=tuple(sigmas) or tuple(known.get(name, UNKNOWN_SIGMA) for name in names),
        order=tuple(order) or (COCO.order if is_coco else tuple(range(K))),
    )


def check_pairs(key, pairs, K):
    """Raises UserError unless `pairs`, the config's data.<key>, are pairs out of K joints."""
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= k < K for k in pair):
            raise UserError(
                f'data.{key} has {list(pair)}: expected pairs of joint numbers from 0 to {K - 1}'
            )


def flip_of(pairs, K):
    """What each of K joints becomes in a mirrored photo, from data.flip_pairs. Raises UserError.

    Joints in no pair stay what they are, and so does one that is paired with itself.
    """
    check_pairs('flip_pairs', pairs, K)
    flip = list(range(K))
    paired = [k for pair in pairs for k in set(pair)]
    twice = sorted({k for k in paired if paired.count(k) > 1})
    if twice:
        raise UserError(
            f'data.flip_pairs has joint {twice[0]} more than once: expected each joint in one pair'
        )
    for a, b in pairs:
        flip[a], flip[b] = b, a
    return tuple(flip)


def flip_by_names(names):
    """What each joint becomes in a mirrored photo, from left and right in the names.

    Sides are words (left_wrist, Wrist-L, rWrist) or stuck to one (leftwrist, rwrist); the latter
    count only where the other side is there. Raises UserError where a left has no right.
    """
    keys = [side_words(name) for name in names]
    flip = []
    for k, key in enumerate(keys):
        turned = tuple(SIDES.get(word, word) for word in key)
        matches = [m for m, other in enumerate(keys) if other == turned]
        if turned != key and len(matches) != 1:
            found = ', '.join(names[m] for m in matches) or 'none'
            raise UserError(
                f'joint {names[k]}: expected one joint for its other side, found {found}; set '
                'data.flip_pairs to the pairs that a mirrored photo swaps, such as [[1,2],[3,4]], '
                f'or to [[{k},{k}]] where there are none'
            )
        if turned == key:
            matches = [m for m, name in enumerate(names) if name.lower() == turn_stuck(names[k])]
        flip.append(matches[0] if len(matches) == 1 else k)
    return tuple(m if flip[m] == k else k for k, m in enumerate(flip))


def side_words(name):
    """The words of a joint's name in lower case, with l and r as left and right."""
    words = re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W_A-Za-z]+', name)
    return tuple({'l': 'left', 'r': 'right'}.get(word, word) for word in map(str.lower, words))


def turn_stuck(name):
    """A name in lower case, turned: left, right, l, r at its start, or left, right at its end."""
    sides = SIDES | {'l': 'r', 'r': 'l'}
    return re.sub('^(left|right|l|r)|(left|right)$', lambda m: sides[m[0]], name.lower(), count=1)


def describe(joints):
    """What a run says of joints that are not COCO's, as lines; '' for COCO's."""
    if joints.names == COCO.names:
        return ''
    pairs = [f'{joints.names[k]}/{joints.names[m]}' for k, m in enumerate(joints.flip) if k < m]
    text = f'joints: {", ".join(joints.names)}; mirrored: {", ".join(pairs) or "none"}'
    guessed = [
        name
        for name, sigma in zip(joints.names, joints.sigmas, strict=True)
        if name not in COCO.names and sigma == UNKNOWN_SIGMA
    ]
    if guessed:
        text += (
            f'\nnote: COCO has no OKS sigma for {", ".join(guessed)}: {UNKNOWN_SIGMA} is taken, '
            'which AP depends on; set data.sigmas where you know better'
        )
    return text


def named_category(content, file):
    """The entry of a file's `categories` that names its joints, or None. Raises UserError.

    Several that name the same joints are one kind, and the first stands for all of them.
    """
    categories = content.get('categories') or []
    if not isinstance(categories, list) or not all(isinstance(c, dict) for c in categories):
        raise UserError(f'{file}: expected categories as a list of objects')
    named = [category for category in categories if category.get('keypoints')]
    for category in named:
        names = category['keypoints']
        texts = isinstance(names, list) and all(
            isinstance(name, str) and name.isprintable() for name in names
        )
        if not texts or len(set(names)) < len(names) or not is_whole(category.get('id')):
            raise UserError(
                f'{file}, category {category.get("name")}: expected a whole number as id, and '
                f'keypoints as a list of different names, found {category.get("id")} and {names}'
            )
    kinds = {tuple(category['keypoints']): category.get('name') for category in named}
    if len(kinds) > 1:
        found = '; '.join(f'{name} ({", ".join(names)})' for names, name in kinds.items())
        raise UserError(
            f'{file} has {len(kinds)} kinds of joints, a network has one: {found}; keep the '
            'categories and annotations of one kind'
        )
    return named[0] if named else None


def skeleton_of(category, file):
    """The limbs of a category, counted from 0: COCO's files count joints from 1. Or UserError."""
    pairs = category.get('skeleton') or []
    numbers = range(1, len(category['keypoints']) + 1)
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        good = isinstance(pair, list) and len(pair) == 2 and all(type(k) is int for k in pair)
        if not good or not all(k in numbers for k in pair):
            raise UserError(
                f'{file}, category {category.get("name")}: its skeleton has {pair}, expected pairs '
                f'of joint numbers from 1 to {len(numbers)}; mend it, or set data.skeleton'
            )
    return [[a - 1, b - 1] for a, b in pairs]


def check_names(names, category, file):
    """Raises UserError where a category names other joints than the config does."""
    if tuple(category['keypoints']) != names:
        raise UserError(
            f'{file} has the joints {", ".join(category["keypoints"])}; those of this config are '
            f'{", ".join(names)}: take annotations of the same joints, or train a new run on these'
        )


def fill_in(config, category, file, made_for=None):
    """A copy of a config that holds all of its joints, and as many channels as they need.

    category: an entry of `categories` that names the joints, or None for the config's own. file:
    where it is from, for errors. made_for: how many joints model.oup_dim is for, where it is not
    the config's own number. Raises UserError.
    """
    settings = dict(config['data'])
    made_for = made_for or len(names_of(settings))
    if category:
        if settings['joints']:
            check_names(names_of(settings), category, file)
        settings['joints'] = category['keypoints']
        settings['skeleton'] = settings['skeleton'] or skeleton_of(category, file)
    try:
        joints = joints_of(settings)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    pairs = [[k, m] for k, m in enumerate(joints.flip) if k < m]
    settings |= {
        'joints': list(joints.names),
        'skeleton': [list(pair) for pair in joints.skeleton],
        'flip_pairs': settings['flip_pairs'] or pairs,
        'sigmas': list(joints.sigmas),
        'joint_order': list(joints.order or ()),
    }
    channels = config['model']['oup_dim'] * len(joints.names) // made_for
    return config | {'data': settings, 'model': config['model'] | {'oup_dim': channels}}


def with_joints(config, made_for=None):
    """The config with the joints that its training annotations name, see `fill_in`."""
    file = config['data']['annotations'] or ANNOTATIONS
    return fill_in(config, named_category(read_file(file), file), file, made_for)


def find_path(path):
    """The path from the working folder or, where only it has one, from the repository."""
    here, there = Path(path), REPOSITORY / path
    # os.path's functions take a name that no file can have for one that is missing.
    return there if os.path.exists(there) and not os.path.exists(here) else here


def read_file(file, labelled=True):
    """The content of a COCO file. Raises UserError where it is missing or is none.

    labelled: whether it must have annotations; where it need not, none is an empty list.
    """
    try:
        with open(find_path(file)) as stream:
            content = json.load(stream)
    except OSError as error:
        raise UserError(
            f'no COCO annotations at {file} ({error.strerror}): edit ANNOTATIONS in '
            'data/coco_pose/ref.py, or pass --set data.annotations=... (person_keypoints_*.json)'
        ) from None
    except (ValueError, RecursionError) as error:  # broken JSON, or bytes that are no text
        raise UserError(f'{file} is no JSON file ({error}): download it again') from None
    if isinstance(content, dict) and not labelled:
        content.setdefault('annotations', [])
    lists = isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ('images', 'annotations')
    )
    if not lists:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f'{file} is no COCO file: expected lists of images and annotations, found {found}'
        )
    return content


def read_annotations(file, joints=COCO, labelled=True):
    """The images, annotations and categories of a COCO keypoints file, checked for what is read.

    Its annotations are those of people with these joints, and carry the id of the one category
    that is left; their own ids are counted anew, and so are their labelled joints. labelled: see
    `read_file`. Raises UserError where the file is missing, is no JSON, lacks keypoints or names
    other joints, and where a value that this project reads cannot be.
    """
    content, K = read_file(file, labelled), len(joints.names)
    category = named_category(content, file)
    if category:
        check_names(joints.names, category, file)
        others = [c.get('id', -1) for c in content['categories'] if not c.get('keypoints')]
    else:
        others = []
    records = {}
    for kind in ('images', 'annotations'):
        for number, entry in enumerate(content[kind]):
            problem = problem_of(entry, kind, K, others, records)
            if problem:
                raise UserError(
                    f'{file}, entry {number} of {kind}: {problem}; use a person_keypoints_*.json '
                    'file as COCO publishes it, or one whose categories name its joints'
                )
    annotations = [a for a in content['annotations'] if a.get('category_id') not in others]
    if category is None:
        category = {'id': next((a.get('category_id', 1) for a in annotations), 1), 'name': 'person'}
    for number, annotation in enumerate(annotations):
        annotation['category_id'] = category['id']
        # The evaluation takes 0 for no person, and counts those with one number as one.
        annotation['id'] = number + 1
        annotation['num_keypoints'] = K - annotation['keypoints'][2::3].count(0)
        # What other tools leave out and the evaluation reads.
        annotation.setdefault('iscrowd', 0)
        annotation.setdefault('bbox', [0, 0, 0, 0])
        annotation.setdefault('area', annotation['bbox'][2] * annotation['bbox'][3])
    return {
        'images': content['images'],
        'annotations': annotations,
        'categories': [category],
    }


def problem_of(entry, kind, num_parts, others, records):
    """What an entry of 'images' or 'annotations' lacks that this project reads, or ''.

    others: ids of the categories that have no joints, whose annotations are not read. records: the
    images by id, which those that pass are added to.
    """
    if not isinstance(entry, dict):
        return f'expected an object, found {type(entry).__name__}'
    if kind == 'annotations':
        category_id = entry.get('category_id')
        if category_id in others:
            return ''
        if not is_whole(category_id) and 'category_id' in entry:
            return f'expected a whole number as category_id, found {category_id!r:.80}'
    missing = [key for key in NEEDED[kind] if key not in entry]
    if missing:
        return f'lacks {" and ".join(missing)}'
    for key, (fits, expected) in FIELDS[kind].items():
        if key in entry and not fits(entry[key]):
            return f'expected {expected} as {key}, found {entry[key]!r:.80}'
    if kind == 'images':
        twice = records.setdefault(entry['id'], entry) is not entry
        return f'an earlier one has the id {entry["id"]}, too' if twice else ''
    keypoints = entry['keypoints']
    if not isinstance(keypoints, list) or len(keypoints) != 3 * num_parts:
        found = len(keypoints) if isinstance(keypoints, list) else type(keypoints).__name__
        return f'expected {3 * num_parts} keypoint values, found {found}'
    if not are_numbers(keypoints, 3 * num_parts):
        return f'expected numbers below {FAR:,} as keypoints'
    values = keypoints[2::3]
    if not 0 <= min(values) <= max(values) <= 2:  # predictions have fractions
        return 'expected 0, 1 or 2 as the third value of every keypoint'
    if entry.get('iscrowd') and entry.get('segmentation'):
        return problem_of_region(entry['segmentation'], records.get(entry['image_id'], {}))
    return ''


def problem_of_region(region, record):
    """What is wrong with a crowd's segmentation, or ''; the C code that draws it does not look.

    record: the entry of its image, which learns its size from run lengths if it lacks it.
    """
    if not isinstance(region, dict):
        return '' if are_polygons(region) else 'expected polygons or run lengths as segmentation'
    size, counts = region.get('size'), region.get('counts')
    if not are_numbers(size, 2) or not all(map(is_whole, size)) or min(size) < 1:
        return f'expected [height, width] as size of its segmentation, found {size!r:.80}'
    own = [record.setdefault('height', size[0]), record.setdefault('width', size[1])]
    if own != size:
        return f'its segmentation is of {size[1]} x {size[0]} pixels, its image {own[1]} x {own[0]}'
    runs = unpack(counts) if isinstance(counts, str) else counts
    whole = (
        isinstance(runs, list) and {int}.issuperset(map(type, runs)) and min(runs, default=0) >= 0
    )
    if not whole or sum(runs) != size[0] * size[1]:
        return f'the counts of its segmentation are not run lengths of {size[1]} x {size[0]} pixels'
    return ''


def are_polygons(region):
    """Whether a segmentation is a list of polygons [x, y, x, y, ...] that can be drawn.

    Time and memory of drawing go with an outline's length.
    """
    if not isinstance(region, list):
        return False
    for outline in region:
        if not isinstance(outline, list) or len(outline) < 6 or len(outline) % 2:
            return False
        if not are_numbers(outline, len(outline)):
            return False
        points = np.array(outline, float).reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, axis=0)).sum() > FAR:
            return False
    return True


def unpack(text):
    """The run lengths in COCO's compressed form; [] where it breaks off or is none.

    Each number is given by 5 bits per character from '0' on, the lowest first, and from the third
    on as the difference to the one before the last.
    """
    runs, value, shift = [], 0, 0
    for code in text.encode(errors='replace'):
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            return []
        if bits & 32:  # more to come
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 else []


def find_folder(images, file, records):
    """The folder that holds the photos of an annotation file: `images` itself or one in it.

    Both published layouts fit, train2014/COCO_train2014_*.jpg and train2017/*.jpg in `images`.
    Raises UserError that lists the paths tried, or the photos that are not there.
    """
    images, split = find_path(images), Path(file).stem.split('_')[-1]
    folders = [images / split, images]
    for folder in folders:
        if any(os.path.isfile(folder / record['file_name']) for record in records[:100]):
            break
    else:
        example = records[0]['file_name'] if records else '*.jpg'
        tried = ', '.join(str(folder / example) for folder in folders)
        raise UserError(
            f'no photos of {file}: tried {tried}; edit IMAGES in data/coco_pose/ref.py, '
            'or pass --set data.images=... (beside --annotations: --images)'
        )
    # One listing is far quicker than asking for 100,000 files one at a time.
    listed = {
        parent: set(os.listdir(folder / parent)) if os.path.isdir(folder / parent) else ()
        for parent in {os.path.dirname(record['file_name']) for record in records}
    }
    missing = [
        record['file_name']
        for record in records
        if os.path.basename(record['file_name']) not in listed[os.path.dirname(record['file_name'])]
    ]
    if missing:
        raise UserError(
            f'{len(missing)} of {len(records)} photos of {file} are missing in {folder}: '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}; download them again'
        )
    return folder


@dataclass
class Split:
    """The part of an annotation file that one phase uses.

    file: the annotation file, folder: where its photos lie, ids: image ids in the order of use,
    records: the images' entries by id, annotations: all of these images, crowds among them.
    joints: of its people, category_id: what the file calls these people.
    """

    file: str
    folder: Path
    ids: list
    records: dict
    annotations: list
    joints: Joints = COCO
    category_id: int = 1

    def path(self, image_id):
        """Where the photo lies."""
        return self.folder / self.records[image_id]['file_name']


def select(content, file, images, ids, joints):
    """The Split of an annotation file's content that holds just these image ids."""
    records = {record['id']: record for record in content['images']}
    records = {image_id: records[image_id] for image_id in ids}
    annotations = [a for a in content['annotations'] if a['image_id'] in records]
    folder = find_folder(images or IMAGES, file, list(records.values()))
    category_id = content['categories'][0]['id']
    return Split(str(file), folder, list(ids), records, annotations, joints, category_id)


def has_people(annotation):
    """Whether an annotation is a person with labelled joints, and no crowd."""
    return not annotation['iscrowd'] and annotation['num_keypoints'] > 0


def open_valid(settings):
    """The validation split: the ids of data/coco_pose/valid_id, or all of `data.valid_annotations`.

    `settings` is the config's 'data'. Raises UserError.
    """
    file = settings['valid_annotations'] or settings['annotations'] or ANNOTATIONS
    joints = joints_of(settings)
    return valid_of(settings, file, read_annotations(file, joints), joints)


def open_file(file, images, joints):
    """All photos of a COCO file, with labels or without, as a Split. Raises UserError.

    images: the folder where they lie. The image_info files that COCO publishes have no annotations.
    """
    content = read_annotations(file, joints, labelled=False)
    ids = [record['id'] for record in content['images']]
    if not ids:
        raise UserError(f'{file} lists no images: choose another')
    return select(content, file, images, ids, joints)


def valid_of(settings, file, content, joints):
    """The validation split within the content of its annotation file. Raises UserError."""
    known = [record['id'] for record in content['images']]
    if settings['valid_annotations']:
        if not known:
            raise UserError(f'{file} lists no images: choose another data.valid_annotations')
        images = settings['valid_images'] or settings['images']
        return select(content, file, images, known, joints)
    wanted = [int(line) for line in VALID_IDS.read_text().split()]
    ids = [image_id for image_id in wanted if image_id in set(known)]
    if not ids:
        raise UserError(
            f'none of the {len(wanted)} validation ids of {VALID_IDS.name} is in {file}: use the '
            'train2014 or train2017 file, or name a validation file with data.valid_annotations'
        )
    return select(content, file, settings['images'], ids, joints)


def open_splits(settings):
    """The training and the validation split, which never overlap. Raises UserError.

    Training uses the images with labelled people that are not in the validation split. Only where
    the config names one and the same file for both are they both the whole file: that is how to
    see whether a network can learn a few photos by heart.
    """
    file = settings['annotations'] or ANNOTATIONS
    valid_file = settings['valid_annotations'] or file
    joints, same = joints_of(settings), same_file(file, valid_file)
    content = read_annotations(file, joints)
    valid_content = content if same else read_annotations(valid_file, joints)
    valid = valid_of(settings, valid_file, valid_content, joints)
    excluded = set() if trains_on_valid(settings) else set(valid.ids)
    with_people = {a['image_id'] for a in content['annotations'] if has_people(a)} - excluded
    ids = [record['id'] for record in content['images'] if record['id'] in with_people]
    if not ids:
        raise UserError(
            f'{file} leaves no image to train on: {len(content["images"])} images, of which '
            f'{len(excluded)} are for validation and the others have no labelled people'
        )
    return select(content, file, settings['images'], ids, joints), valid


def same_file(a, b):
    """Whether two paths name one file."""
    return os.path.realpath(a) == os.path.realpath(b)


def trains_on_valid(settings):
    """Whether the config names one file for both training and validation."""
    valid = settings['valid_annotations']
    return bool(valid) and same_file(settings['annotations'] or ANNOTATIONS, valid)


def read_photo(path, record=None, upright=False):
    """A photo as (H, W, 3) uint8 RGB; grey, alpha and 16 bit are converted.

    record: the image's entry, whose width and height the photo must have where they are given.
    upright: turned as its EXIF tag says, and as viewers show it; otherwise the stored pixels, which
    are the frame of COCO's annotations.
    Raises UserError that names the photo where it is missing, broken, cut short or too large.
    """
    advice = 'convert it to JPEG or PNG, or choose another' if upright else 'download it again'
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'cannot read photo {path} ({error.strerror}): {advice}') from None
    pixels = claimed_pixels(data)
    if pixels > MOST_PIXELS:
        raise UserError(
            f'photo {path} claims {pixels:,} pixels: expected {MOST_PIXELS:,} at most; scale it '
            'down, or, if it is smaller, take it from its source again'
        )
    # A decoder fills what is missing of a JPEG with grey and says nothing.
    cut_short = data[:2] == JPEG and not jpeg_ends(data)
    photo = None
    if data and not cut_short:
        flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        with contextlib.suppress(cv2.error):  # of sizes beyond OpenCV's own limits
            photo = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if photo is None:
        problem = 'is cut short' if cut_short else 'cannot be decoded'
        raise UserError(f'photo {path} {problem} ({len(data)} bytes): {advice}')
    height, width = photo.shape[:2]
    expected = (record.get('height', height), record.get('width', width)) if record else None
    if expected and expected != (height, width):
        raise UserError(
            f'photo {path} is {width} x {height}, its annotation says {expected[1]} x '
            f'{expected[0]}: use the original photos'
        )
    return photo


def jpeg_segments(data):
    """The parts of a JPEG, one by one: the kind of each, a byte, and where its content starts.

    They are read from the first to the last: a preview lies within one.
    """
    place = 2
    while marker := MARKER.search(data, place):
        yield marker[1][0], marker.end()
        size = int.from_bytes(data[marker.end() : marker.end() + 2], 'big')
        place = marker.end() + size  # what follows is the next marker, or pixels and then a marker


def jpeg_ends(data):
    """Whether a JPEG has its end marker, whatever may follow it (phones append clips)."""
    return any(kind == END for kind, _ in jpeg_segments(data))


def claimed_pixels(data):
    """How many pixels the header of a JPEG, PNG or BMP claims, or 0.

    A decoder takes memory for all of them, however few the file holds.
    """
    place, length, order = 0, 0, 'big'
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        place, length = 16, 4
    elif data[:2] == b'BM':
        place, length, order = 18, 4, 'little'
    elif data[:2] == JPEG:
        frames = (start for kind, start in jpeg_segments(data) if kind in JPEG_FRAMES)
        place, length = next(frames, len(data)) + 3, 2  # behind the length and the depth
    sides = (data[place : place + length], data[place + length : place + 2 * length])
    # A negative height of a BMP says that it is stored from top to bottom.
    width, height = (int.from_bytes(side, order, signed=order == 'little') for side in sides)
    return abs(width * height)


def crowd_mask(crowds, height, width):
    """(H, W) uint8: 1 inside any of the crowd annotations, image frame.

    Regions may be polygons or run lengths, compressed or not, as `read_annotations` has checked
    them; without either the box counts.
    """
    mask = np.zeros((height, width), np.uint8)
    for crowd in crowds:
        region = crowd.get('segmentation')
        if region and isinstance(region, dict):
            counts = region['counts']
            runs = unpack(counts) if isinstance(counts, str) else counts
            values = np.arange(len(runs)) % 2 == 1
            mask |= np.repeat(values, runs).reshape(width, height).T
        elif region:
            mask |= rle_mask.decode(rle_mask.merge(rle_mask.frPyObjects(region, height, width)))
        elif crowd.get('bbox'):
            x, y, w, h = (round(value) for value in crowd['bbox'])
            mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask
