"""Which photos train and which validate: the splits of a config, found on disk."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.coco_pose import ref
from data.coco_pose.annotations import read_file
from utils.errors import UserError


def sources(settings):
    """(annotation file, folder of photos) of training and of validation; `settings`: 'data'."""
    train = settings['annotations'] or ref.ANNOTATIONS, settings['images'] or ref.IMAGES
    valid = settings['valid_annotations'], settings['valid_images'] or train[1]
    return train, valid if valid[0] else train


def find_folder(file, images, names=()):
    """The folder that holds the photos of an annotation file: one within `images`, or itself.

    Both published layouts fit, train2014/COCO_train2014_*.jpg and train2017/*.jpg in `images`.
    Raises UserError where the file or such a folder is missing, or any of `names` in it.
    """
    if not os.path.isfile(ref.find_path(file)):
        read_file(file)  # which says so
    tried = [ref.find_path(images) / Path(file).stem.split('_')[-1], ref.find_path(images)]
    folders = [f for f in tried if any(os.path.exists(f / name) for name in names[:100] or ['.'])]
    if not folders:
        tried = [folder / ''.join(names[:1]) for folder in tried]
        raise UserError(
            f'no photos of {file}: tried {", ".join(map(str, tried))}; edit IMAGES in '
            'data/coco_pose/ref.py, or pass --set data.images=... (beside --annotations: --images)'
        )
    # One listing is far quicker than asking for 100,000 files one at a time.
    paths = [os.path.normpath(name) for name in names]
    parents = {os.path.dirname(path) for path in paths}
    parents = [parent for parent in parents if os.path.isdir(folders[0] / parent)]
    listed = {os.path.join(p, name) for p in parents for name in os.listdir(folders[0] / p)}
    if missing := [path for path in paths if path not in listed]:
        raise UserError(
            f'{len(missing)} of {len(names)} photos of {file} are missing in {folders[0]}: '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}; download them again'
        )
    return folders[0]


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
        raise UserError(f'{file}: expected {3 * wanted} keypoint values of a person, found {3 * K}')
    if len(whole) == 0:
        raise UserError(f'{file} lists no images: choose another')
    split = whole.select(choose(whole))
    folder = find_folder(file, images, split.names.tolist())
    return replace(split, joints=joints, folder=folder)


def open_valid(settings):
    """The validation split: the ids of data/coco_pose/valid_id, or all of `data.valid_annotations`.

    Raises UserError.
    """
    _, (file, images) = sources(settings)

    def choose(whole):
        places = dict(zip(whole.ids.tolist(), range(len(whole)), strict=True))
        wanted = [int(line) for line in ref.VALID_IDS.read_text('utf-8').split()]
        numbers = [places[image_id] for image_id in wanted if image_id in places]
        if not numbers:
            raise UserError(
                f'none of the {len(wanted)} validation ids of {ref.VALID_IDS.name} is in {file}: '
                'use the train2014 or train2017 file, or name a validation file with '
                'data.valid_annotations'
            )
        return numbers

    options = {} if settings['valid_annotations'] else {'choose': choose}
    return open_file(file, images, ref.get_joints(settings), **options)


def open_splits(settings):
    """The training and the validation split, which never overlap. Raises UserError.

    Training uses the images with labelled people that are not in the validation split. Only where
    the config names one and the same file for both are they both the whole file: that is how to
    see whether a network can learn a few photos by heart.
    """
    (file, images), valid_source = sources(settings)
    find_folder(*valid_source)
    find_folder(file, images)
    valid = open_valid(settings)
    excluded = [] if trains_on_valid(settings) else valid.ids

    def choose(whole):
        numbers = np.flatnonzero((whole.count_people() > 0) & ~np.isin(whole.ids, excluded))
        if len(numbers) == 0:
            raise UserError(
                f'{file} leaves no image to train on: {len(whole)} images, of which '
                f'{len(excluded)} are for validation and the others have no labelled people'
            )
        return numbers

    return open_file(file, images, ref.get_joints(settings), choose), valid


def trains_on_valid(settings):
    """Whether the config names one file for both training and validation."""
    (file, _), (valid_file, _) = sources(settings)
    same = os.path.realpath(file) == os.path.realpath(valid_file)
    return same and settings['valid_annotations'] != ''
