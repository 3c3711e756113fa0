"""Which photos train and which validate: the splits of a config, found on disk."""

import os
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np

from data.coco_pose import ref
from data.coco_pose.annotations import measure, read_file
from data.coco_pose.photo import is_turned
from utils.errors import UserError

LOOKED_AT = 1000  # photos, evenly spaced, of a larger split


def sources(settings):
    """(annotation file, folder of photos) of training and of validation; `settings`: 'data'."""
    train = settings['annotations'] or ref.ANNOTATIONS, settings['images'] or ref.IMAGES
    valid = settings['valid_annotations'], settings['valid_images'] or train[1]
    return train, valid if valid[0] else train


def find_folder(file, images, names=()):
    """The folder that holds the photos of an annotation file: one within `images`, or itself.

    Both published layouts fit, train2014/COCO_train2014_*.jpg and train2017/*.jpg in `images`.
    Raises UserError where the file or such a folder is missing.
    """
    if not os.path.isfile(ref.find_path(file)):
        read_file(file)  # which says so
    tried = [ref.find_path(images) / Path(file).stem.split('_')[-1], ref.find_path(images)]
    for folder in tried:
        for name in names[:100] or ['.']:
            if any(os.path.exists(folder / normalize(form, name)) for form in ('NFC', 'NFD')):
                return folder
    tried = ', '.join(str(folder / ''.join(names[:1])) for folder in tried)
    raise UserError(
        f'no photos of {file}: tried {tried}; edit IMAGES in data/coco_pose/ref.py, or pass '
        '--set data.images=... (beside --annotations: --images)'
    )


def find_names(file, folder, names):
    """The photos' names as the disk has them, whatever form of Unicode. UserError if any lacks."""
    # One listing is far quicker than asking for 100,000 files one at a time.
    paths = [os.path.normpath(name) for name in names]
    parents = [p for p in {os.path.dirname(path) for path in paths} if os.path.isdir(folder / p)]
    listed = {os.path.join(p, name) for p in parents for name in os.listdir(folder / p)}
    if listed.issuperset(paths):
        return paths
    forms = {normalize('NFC', path): path for path in listed}
    paths = [path if path in listed else forms.get(normalize('NFC', path)) for path in paths]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        raise UserError(
            f'{len(missing)} of {len(names)} photos of {file} are missing in {folder}: '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}; download them again'
        )
    return paths


def open_file(file, images, joints, choose=lambda split: np.arange(len(split))):
    """The photos of a COCO file that `choose` picks, as a Split, with labels or without.

    images: the folder where they lie. choose: from the Split of the whole file to the places of
    photos. The image_info files that COCO publishes have no annotations. Raises UserError.
    """
    find_folder(file, images)  # at once, for reading may take a while
    whole = read_file(file)
    K, wanted = whole.keypoints.shape[1], len(joints.names)
    if whole.category['keypoints']:
        ref.check_names(whole.category['keypoints'], joints.names, file)
    elif len(whole.keypoints) and K != wanted:
        raise UserError(
            f'{file}: expected {3 * wanted} keypoint values of a person, found {3 * K}; name its '
            'joints: --set data.joints=["...", ...]'
        )
    if len(whole) == 0:
        raise UserError(f'{file} lists no images: choose another')
    folder = find_folder(file, images, whole.names.tolist())
    split = replace(whole, joints=joints, folder=folder)
    split = split.select(choose(split))
    names = find_names(file, folder, split.names.tolist())
    return replace(split, names=np.array(names, np.dtypes.StringDType()))


def is_coco(split, number):
    """Whether a photo is one of COCO's, whose names hold their ids."""
    return f'{split.ids[number]:012d}.' in split.names[number]


def open_valid(settings):
    """The validation split: the ids of data/coco_pose/valid_id, or all of `data.valid_annotations`.

    Raises UserError.
    """
    _, (file, images) = sources(settings)

    def choose(whole):
        if settings['valid_annotations']:
            return np.arange(len(whole))
        places = {image_id: place for place, image_id in enumerate(whole.ids.tolist())}
        wanted = [int(line) for line in ref.VALID_IDS.read_text('utf-8').split()]
        numbers = [places[image_id] for image_id in wanted if image_id in places]
        numbers = [n for n in numbers if is_coco(whole, n)]  # others may number their photos alike
        if not numbers:
            raise UserError(
                f'none of the {len(wanted)} validation photos of COCO is in {file}: set '
                'data.valid_annotations to a file of photos to validate on, or use the train2014 '
                'or train2017 file'
            )
        return numbers

    return open_file(file, images, ref.get_joints(settings), choose)


def open_splits(settings):
    """The training and the validation split, which never overlap. Raises UserError.

    Training uses the images with labelled people that are not in the validation split: an id
    names a photo only within its own file, so that photos are compared by where they lie. Only
    where the config names one and the same file for both are they both the whole file: that is how
    to see whether a network can learn a few photos by heart.
    """
    (file, images), _ = sources(settings)
    find_folder(file, images)  # before the other file is read
    valid = open_valid(settings)
    numbers = [] if trains_on_valid(settings) else range(len(valid))
    paths = {os.path.realpath(valid.path(n)) for n in numbers}
    names = {os.path.basename(path) for path in paths}
    # COCO's photos keep their ids and bytes where they are published again, as those of val2014.
    sizes = {valid.ids[n]: os.path.getsize(valid.path(n)) for n in numbers if is_coco(valid, n)}

    def is_validated(whole, n):
        path = whole.path(n)
        if whole.ids[n] in sizes and is_coco(whole, n) and path.is_file():
            return os.path.getsize(path) == sizes[whole.ids[n]]
        return path.name in names and os.path.realpath(path) in paths

    def choose(whole):
        people = whole.count_people() > 0
        if not people.any():
            crowds = len(whole.is_crowd) and whole.is_crowd.all()
            raise UserError(
                f'{file} has no labelled people to train on'
                + ': all of its annotations have iscrowd 1, which marks crowds; set it to 0 for '
                'single people' * bool(crowds)
            )
        known = np.isin(whole.ids, list(sizes))
        known |= [os.path.basename(name) in names for name in whole.names.tolist()]
        known &= people
        known[known] = [is_validated(whole, n) for n in np.flatnonzero(known)]  # which are few
        if known.sum() == people.sum():
            raise UserError(
                f'{file} leaves no image to train on: all {people.sum()} images with labelled '
                'people are for validation'
            )
        # Those that the file itself names for validation are left out as a matter of course.
        whole.excluded = int(known.sum()) if settings['valid_annotations'] else 0
        return np.flatnonzero(people & ~known)

    return open_file(file, images, ref.get_joints(settings), choose), valid


def describe(split):
    """What a run says about the annotations of a split, as lines."""
    rows = np.concatenate([split.people(number) for number in range(len(split))])
    people = split.keypoints[rows]
    sizes = np.repeat(split.sizes[:, ::-1], split.count_people(), axis=0)[:, None]  # width, height
    points, seen = people[..., :2], people[..., 2] > 0
    outside = ((points < 0) | (points > np.where(sizes > 0, sizes, np.inf))).any(-1)
    looked_at = np.linspace(0, len(split) - 1, min(len(split), LOOKED_AT), dtype=int)
    turned = sum(is_turned(split.path(number)) for number in looked_at)
    frames = ('upright', 'as stored') if split.upright else ('as stored', 'upright')
    apart = measure(people).any()
    unknown, beyond = (split.areas[rows] == 0).sum(), outside[seen].sum() / max(seen.sum(), 1)
    notes = {
        f'{split.excluded} photos are validated on, and left out of training': split.excluded,
        f'{split.estimated} people have no plausible area, which AP depends on: it is estimated '
        'from their segmentation or box': split.estimated,
        f'people without an area, a box, or joints that lie apart: {unknown}; AP counts only exact '
        'hits of them, so add areas or boxes': unknown,
        f'EXIF turns {turned} of {len(looked_at)} photos looked at: they are read {frames[0]}, or '
        f'{frames[1]} where only that fits their width and height': turned,
        'all joints lie between 0 and 1: expected pixels; multiply x by the width of the photo and '
        'y by its height': seen.any() and abs(points[seen]).max() <= 1,
        "all of a person's joints lie on one pixel": seen.sum() > len(rows) and not apart,
        f'{beyond:.0%} of the joints lie outside of their photos': beyond > 0.5,
    }
    return [f'note: {split.file}: {note}' for note, applies in notes.items() if applies]


def trains_on_valid(settings):
    """Whether the config names one file for both training and validation."""
    (file, _), (valid_file, _) = sources(settings)
    same = os.path.realpath(file) == os.path.realpath(valid_file)
    return same and settings['valid_annotations'] != ''
