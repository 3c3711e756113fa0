"""Which photos train and which validate: the splits of a config, found on disk."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.coco_pose import ref
from data.coco_pose.annotations import read_file
from utils.errors import UserError


def sources(settings):
    """(annotation file, folder of photos) of training, and the same of validation."""
    train = settings['annotations'] or ref.ANNOTATIONS, settings['images'] or ref.IMAGES
    valid = settings['valid_annotations'], settings['valid_images'] or train[1]
    return train, valid if valid[0] else train


def check_sources(*pairs):
    """Raises UserError where a file or a folder of photos is missing, before anything is parsed."""
    for file, images in pairs:
        if not os.path.isfile(ref.find_path(file)):
            read_file(file)  # which says so
        find_folder(file, images)


def find_folder(file, images, names=()):
    """The folder that holds the photos of an annotation file: one within `images`, or itself.

    Both published layouts fit, train2014/COCO_train2014_*.jpg and train2017/*.jpg in `images`.
    Raises UserError where there is no such folder, or where `names` are not all in it.
    """
    tried = [ref.find_path(images) / Path(file).stem.split('_')[-1], ref.find_path(images)]
    for folder in filter(os.path.isdir, tried):
        if not names or any(os.path.isfile(folder / name) for name in names[:100]):
            break
    else:
        paths = ', '.join(str(folder / name) for folder in tried for name in names[:1] or [''])
        raise UserError(
            f'no photos of {file}: tried {paths}; edit IMAGES in data/coco_pose/ref.py, or pass '
            '--set data.images=... (beside --annotations: --images)'
        )
    # One listing is far quicker than asking for 100,000 files one at a time.
    paths = [os.path.normpath(name) for name in names]
    parents = {os.path.dirname(path) for path in paths}
    listed = {
        os.path.join(parent, name)
        for parent in parents
        if os.path.isdir(folder / parent)
        for name in os.listdir(folder / parent)
    }
    if missing := [path for path in paths if path not in listed]:
        raise UserError(
            f'{len(missing)} of {len(names)} photos of {file} are missing in {folder}: '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}; download them again'
        )
    return folder


def open_photos(split, images, joints):
    """A Split that knows its joints, and the folder where its photos are. Raises UserError."""
    K, wanted = split.keypoints.shape[1], len(joints.names)
    if split.category['keypoints']:
        ref.check_names(split.category['keypoints'], joints.names, split.file)
    elif len(split.keypoints) and K != wanted:
        raise UserError(
            f'{split.file}: expected {3 * wanted} keypoint values of each person, found {3 * K}'
        )
    return replace(
        split, joints=joints, folder=find_folder(split.file, images, split.names.tolist())
    )


def open_file(file, images, joints):
    """All photos of a COCO file as a Split, with labels or without. Raises UserError.

    images: the folder where they lie. The image_info files that COCO publishes have no annotations.
    """
    check_sources((file, images))
    whole = read_file(file)
    if len(whole) == 0:
        raise UserError(f'{file} lists no images: choose another')
    return open_photos(whole, images, joints)


def open_valid(settings):
    """The validation split: the ids of data/coco_pose/valid_id, or all of `data.valid_annotations`.

    `settings` is the config's 'data'. Raises UserError.
    """
    _, (file, images) = sources(settings)
    joints = ref.get_joints(settings)
    if settings['valid_annotations']:
        return open_file(file, images, joints)
    check_sources((file, images))
    whole = read_file(file)
    places = dict(zip(whole.ids.tolist(), range(len(whole)), strict=True))
    wanted = [int(line) for line in ref.VALID_IDS.read_text().split()]
    numbers = [places[image_id] for image_id in wanted if image_id in places]
    if not numbers:
        raise UserError(
            f'none of the {len(wanted)} validation ids of {ref.VALID_IDS.name} is in {file}: use '
            'the train2014 or train2017 file, or name a validation file with data.valid_annotations'
        )
    return open_photos(whole.select(numbers), images, joints)


def open_splits(settings):
    """The training and the validation split, which never overlap. Raises UserError.

    Training uses the images with labelled people that are not in the validation split. Only where
    the config names one and the same file for both are they both the whole file: that is how to
    see whether a network can learn a few photos by heart.
    """
    (file, images), valid_source = sources(settings)
    check_sources((file, images), valid_source)
    whole, valid = read_file(file), open_valid(settings)
    excluded = [] if trains_on_valid(settings) else valid.ids
    numbers = np.flatnonzero((whole.count_people() > 0) & ~np.isin(whole.ids, excluded))
    if len(numbers) == 0:
        raise UserError(
            f'{file} leaves no image to train on: {len(whole)} images, of which {len(excluded)} '
            'are for validation and the others have no labelled people'
        )
    return open_photos(whole.select(numbers), images, ref.get_joints(settings)), valid


def trains_on_valid(settings):
    """Whether the config names one file for both training and validation."""
    (file, _), (valid_file, _) = sources(settings)
    named = bool(settings['valid_annotations'])
    return named and os.path.realpath(file) == os.path.realpath(valid_file)
