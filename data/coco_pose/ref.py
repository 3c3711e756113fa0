"""The facts of COCO's joints, where COCO lies, and how its annotations, photos and crowds are read.

Another set of joints is another set of the tables below; no other file knows how many there are.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle_mask

# Where COCO lies: edit these once, or pass `--set data.images=... data.annotations=...`.
# IMAGES holds the folder train2014 or train2017, or the photos themselves.
IMAGES = 'data/coco/images'
ANNOTATIONS = 'data/coco/annotations/person_keypoints_train2014.json'

PARTS = (
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
)
# What joint k becomes in a mirrored photo.
FLIP = tuple(
    PARTS.index(part.replace('left', 'LEFT').replace('right', 'left').replace('LEFT', 'right'))
    for part in PARTS
)
# Limbs, as pairs of joints.
SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

VALID_IDS = Path(__file__).with_name('valid_id')


class DataError(Exception):
    """The data on disk are not what they should be; the message says what to do."""

    def __str__(self):
        # Raised in a DataLoader worker, it arrives with the worker's whole traceback in front.
        return self.args[0].rsplit('DataError: ', 1)[-1].strip()


def read_annotations(file):
    """The content of a COCO keypoints file, checked for what this project reads.

    Raises DataError where the file is missing, is no JSON or has no keypoints.
    """
    try:
        with open(file) as stream:
            content = json.load(stream)
    except OSError as error:
        raise DataError(
            f'no COCO annotations at {file} ({error.strerror}): edit ANNOTATIONS in '
            'data/coco_pose/ref.py, or pass --set data.annotations=... (person_keypoints_*.json)'
        ) from None
    except ValueError as error:  # broken JSON, or bytes that are no text
        raise DataError(f'{file} is no JSON file ({error}): download it again') from None
    lists = isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ('images', 'annotations')
    )
    if not lists:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f'{file} is no COCO file: expected lists of images and annotations, found {found}'
        )
    for kind in ('images', 'annotations'):
        for number, entry in enumerate(content[kind]):
            problem = problem_of(entry, kind)
            if problem:
                raise DataError(
                    f'{file}, entry {number} of {kind}: {problem}; use a person_keypoints_*.json '
                    'file as COCO publishes it'
                )
    for number, annotation in enumerate(content['annotations']):
        # What other tools leave out and the evaluation reads.
        annotation.setdefault('id', number + 1)
        annotation.setdefault('category_id', 1)
        annotation.setdefault('iscrowd', 0)
        annotation.setdefault('num_keypoints', sum(v > 0 for v in annotation['keypoints'][2::3]))
        annotation.setdefault('bbox', [0, 0, 0, 0])
        annotation.setdefault('area', annotation['bbox'][2] * annotation['bbox'][3])
    return content


def problem_of(entry, kind):
    """What an entry of 'images' or 'annotations' lacks that this project reads, or ''."""
    if not isinstance(entry, dict):
        return f'expected an object, found {type(entry).__name__}'
    needed = ('id', 'file_name') if kind == 'images' else ('image_id', 'keypoints')
    missing = [key for key in needed if key not in entry]
    if missing:
        return f'lacks {" and ".join(missing)}'
    if kind == 'images':
        return ''
    keypoints = entry['keypoints']
    if not isinstance(keypoints, list) or len(keypoints) != 3 * len(PARTS):
        found = len(keypoints) if isinstance(keypoints, list) else type(keypoints).__name__
        return f'expected {3 * len(PARTS)} keypoint values, found {found}'
    if not all(isinstance(value, (int, float)) for value in keypoints):
        return 'expected numbers as keypoints'
    return ''


def find_folder(images, file, records):
    """The folder that holds the photos of an annotation file: `images` itself or one in it.

    Both published layouts fit, train2014/COCO_train2014_*.jpg and train2017/*.jpg in `images`.
    Raises DataError that lists the paths tried, or the photos that are not there.
    """
    images, split = Path(images), Path(file).stem.split('_')[-1]
    folders = [images / split, images]
    for folder in folders:
        if any((folder / record['file_name']).is_file() for record in records[:100]):
            break
    else:
        example = records[0]['file_name'] if records else '*.jpg'
        tried = ', '.join(str(folder / example) for folder in folders)
        raise DataError(
            f'no photos of {file}: tried {tried}; edit IMAGES in data/coco_pose/ref.py, '
            'or pass --set data.images=...'
        )
    # One listing is far quicker than asking for 100,000 files one at a time.
    listed = {
        parent: set(os.listdir(folder / parent)) if (folder / parent).is_dir() else ()
        for parent in {os.path.dirname(record['file_name']) for record in records}
    }
    missing = [
        record['file_name']
        for record in records
        if os.path.basename(record['file_name']) not in listed[os.path.dirname(record['file_name'])]
    ]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(records)} photos of {file} are missing in {folder}: '
            f'{", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""}; download them again'
        )
    return folder


@dataclass
class Split:
    """The part of an annotation file that one phase uses.

    file: the annotation file, folder: where its photos lie, ids: image ids in the order of use,
    records: the images' entries by id, annotations: all of these images, crowds among them.
    """

    file: str
    folder: Path
    ids: list
    records: dict
    annotations: list

    def path(self, image_id):
        """Where the photo lies."""
        return self.folder / self.records[image_id]['file_name']


def select(content, file, images, ids):
    """The Split of an annotation file's content that holds just these image ids."""
    records = {record['id']: record for record in content['images']}
    records = {image_id: records[image_id] for image_id in ids}
    annotations = [a for a in content['annotations'] if a['image_id'] in records]
    folder = find_folder(images or IMAGES, file, list(records.values()))
    return Split(str(file), folder, list(ids), records, annotations)


def has_people(annotation):
    """Whether an annotation is a person with labelled joints, and no crowd."""
    return not annotation['iscrowd'] and annotation['num_keypoints'] > 0


def open_valid(settings):
    """The validation split: the ids of data/coco_pose/valid_id, or all of `data.valid_annotations`.

    `settings` is the config's 'data'. Raises DataError.
    """
    file = settings['valid_annotations'] or settings['annotations'] or ANNOTATIONS
    return valid_of(settings, file, read_annotations(file))


def valid_of(settings, file, content):
    """The validation split within the content of its annotation file. Raises DataError."""
    known = [record['id'] for record in content['images']]
    if settings['valid_annotations']:
        if not known:
            raise DataError(f'{file} lists no images: choose another data.valid_annotations')
        return select(content, file, settings['valid_images'] or settings['images'], known)
    wanted = [int(line) for line in VALID_IDS.read_text().split()]
    ids = [image_id for image_id in wanted if image_id in set(known)]
    if not ids:
        raise DataError(
            f'none of the {len(wanted)} validation ids of {VALID_IDS.name} is in {file}: use the '
            'train2014 or train2017 file, or name a validation file with data.valid_annotations'
        )
    return select(content, file, settings['images'], ids)


def open_splits(settings):
    """The training and the validation split, which never overlap. Raises DataError.

    Training uses the images with labelled people that are not in the validation split. Only where
    the config names one and the same file for both are they both the whole file: that is how to
    see whether a network can learn a few photos by heart.
    """
    file = settings['annotations'] or ANNOTATIONS
    valid_file = settings['valid_annotations'] or file
    content = read_annotations(file)
    valid_content = content if same_file(file, valid_file) else read_annotations(valid_file)
    valid = valid_of(settings, valid_file, valid_content)
    excluded = set() if trains_on_valid(settings) else set(valid.ids)
    with_people = {a['image_id'] for a in content['annotations'] if has_people(a)} - excluded
    ids = [record['id'] for record in content['images'] if record['id'] in with_people]
    if not ids:
        raise DataError(
            f'{file} leaves no image to train on: {len(content["images"])} images, of which '
            f'{len(excluded)} are for validation and the others have no labelled people'
        )
    return select(content, file, settings['images'], ids), valid


def same_file(a, b):
    """Whether two paths name one file."""
    return os.path.realpath(a) == os.path.realpath(b)


def trains_on_valid(settings):
    """Whether the config names one file for both training and validation."""
    valid = settings['valid_annotations']
    return bool(valid) and same_file(settings['annotations'] or ANNOTATIONS, valid)


def read_photo(path, record=None):
    """A photo as (H, W, 3) uint8 RGB; grey, alpha and 16 bit are converted.

    record: the image's entry, whose width and height the photo must have where they are given.
    Raises DataError that names the photo where it is missing, broken or cut short.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'cannot read photo {path} ({error.strerror}): download it again') from None
    # A decoder fills what is missing of a JPEG with grey and says nothing. Inside the scan, the
    # bytes of a marker cannot occur, so the end marker stands after the last start of a scan.
    cut_short = data[:2] == b'\xff\xd8' and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda')
    photo = None
    if data and not cut_short:
        # Annotations are in the frame of the stored pixels, whatever an EXIF tag says.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if photo is None:
        problem = 'is cut short' if cut_short else 'cannot be decoded'
        raise DataError(f'photo {path} {problem} ({len(data)} bytes): download it again')
    height, width = photo.shape[:2]
    expected = (record.get('height', height), record.get('width', width)) if record else None
    if expected and expected != (height, width):
        raise DataError(
            f'photo {path} is {width} x {height}, its annotation says {expected[1]} x '
            f'{expected[0]}: use the original photos'
        )
    return photo


def crowd_mask(crowds, height, width):
    """(H, W) uint8: 1 inside any of the crowd annotations, image frame.

    Regions may be polygons or run lengths, compressed or not; without either the box counts.
    """
    mask = np.zeros((height, width), np.uint8)
    for crowd in crowds:
        region = crowd.get('segmentation')
        if isinstance(region, dict):
            counts = region['counts']
            rle = (
                rle_mask.frPyObjects(region, height, width) if isinstance(counts, list) else region
            )
            mask |= rle_mask.decode(rle)
        elif region:
            mask |= rle_mask.decode(rle_mask.merge(rle_mask.frPyObjects(region, height, width)))
        elif crowd.get('bbox'):
            x, y, w, h = (round(value) for value in crowd['bbox'])
            mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 1
    return mask
