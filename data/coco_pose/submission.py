"""What COCO's server takes: the people found in one set of photos, in a file and a zip of it."""

import json
import math
import zipfile
from pathlib import Path

from utils.errors import UserError


def write_submission(folder, name, split, detections):
    """Writes person_keypoints_<set>_<name>_results.json and a zip of it; returns both paths.

    <set> is the last part of the annotation file's name, as in image_info_test-dev2017.json.
    split: a ref.Split. detections: a list as `test.predict` returns it. Raises UserError if COCO
    would not take what was written.
    """
    part = Path(split.file).stem.split('_')[-1]
    path = folder / f'person_keypoints_{part}_{name}_results.json'
    archive = path.with_suffix('.zip')
    path.write_text(json.dumps(detections))
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as stream:
        stream.write(path, path.name)
    ids, values = set(split.ids), 3 * len(split.joints.names)
    for number, entry in enumerate(json.loads(path.read_text())):
        if problem := problem_of(entry, ids, values):
            raise UserError(f'{path}, entry {number}: {problem}; COCO would not take it')
    return path, archive


def problem_of(entry, ids, values):
    """What is wrong with an entry of a results file, or ''.

    ids: those of the images; values: how many the keypoints have, three for each joint.
    """
    wanted = {'image_id', 'category_id', 'keypoints', 'score'}
    if set(entry) != wanted:
        return f'expected {sorted(wanted)}, found {sorted(entry)}'
    if type(entry['image_id']) is not int or entry['image_id'] not in ids:
        return f'image_id {entry["image_id"]!r} is no number of an image of the annotation file'
    if type(entry['category_id']) is not int:
        return f'category_id {entry["category_id"]!r} is no whole number'
    if len(entry['keypoints']) != values:
        return f'expected {values} keypoint values, found {len(entry["keypoints"])}'
    if not all(map(math.isfinite, [*entry['keypoints'], entry['score']])):
        return 'expected finite numbers as keypoints and score'
    return ''
