"""Detections: as entries of COCO's results, their scores, a submission, and pictures of them."""

import contextlib
import copy
import io
import json
import zipfile
from itertools import zip_longest
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.draw import beside, draw_people, save_picture
from utils.errors import UserError

STATS = ('AP', 'AP50', 'AP75', 'APm', 'APl', 'AR', 'AR50', 'AR75', 'ARm', 'ARl')
VISIBLE = 0.1  # score of the people that pictures show


def to_coco(people, scores, image_id, category_id=1, seen=None):
    """People (P, K, 3 + D) of x, y, value, ..., as entries of a COCO results file, best first.

    seen (P, K): all joints but those that refine filled in, which `guessed` lists, from 0.
    """
    seen = people[:, :, 2] > 0 if seen is None else seen
    entries = []
    for i in np.argsort(-scores, kind='stable'):
        # COCO does not look at the third figure; here it says how sure a joint is.
        keypoints = people[i, :, :3].astype(float).round(3).flatten().tolist()
        entry = {'image_id': int(image_id), 'category_id': category_id, 'keypoints': keypoints}
        guessed = np.flatnonzero((people[i, :, 2] > 0) & ~seen[i]).tolist()
        entries.append(entry | {'score': round(float(scores[i]), 6), 'guessed': guessed})
    return entries


def plain(detections):
    """What `to_coco` makes with only what COCO knows, as for its server."""
    return [{key: value for key, value in d.items() if key != 'guessed'} for d in detections]


def truth(split):
    """The annotations of a split's photos as the content of a COCO file, for its evaluation."""
    annotations = [
        {
            'id': int(row) + 1,  # the evaluation takes 0 for no person
            'image_id': int(image_id),
            'category_id': split.category['id'],
            'keypoints': split.keypoints[row].flatten(),
            'num_keypoints': int((split.keypoints[row, :, 2] > 0).sum()),
            'bbox': split.boxes[row].tolist(),
            'area': float(split.areas[row]),
            'iscrowd': int(split.is_crowd[row]),
        }
        for number, image_id in enumerate(split.ids)
        for row in split.annotations(number)
    ]
    images = [{'id': image_id} for image_id in split.ids.tolist()]
    category = {'id': split.category['id'], 'name': 'person'}
    return {'images': images, 'annotations': annotations, 'categories': [category]}


def coco_scores(split, detections):
    """COCO's ten figures by name, its summary as text, and the COCOeval itself."""
    known, found = COCO(), COCO()
    text = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        known.dataset = truth(split)
        known.createIndex()
        if detections:
            found = known.loadRes(copy.deepcopy(detections))  # which it adds to
        else:  # loadRes fails on an empty list; nothing found is a result, and scores 0
            found.dataset = known.dataset | {'annotations': []}
            found.createIndex()
        evaluation = COCOeval(known, found, 'keypoints')
        evaluation.params.imgIds = split.ids.tolist()
        evaluation.params.kpt_oks_sigmas = np.array(split.joints.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(text):
        evaluation.summarize()
    return dict(zip(STATS, evaluation.stats.tolist(), strict=True)), text.getvalue(), evaluation


def write_submission(folder, name, split, detections):
    """Writes person_keypoints_<set>_<name>_results.json and a zip of it; returns both paths.

    <set> is the last part of the annotation file's name, as in image_info_test-dev2017.json.
    detections: as `to_coco` makes them, which is what COCO's server takes.
    """
    part = Path(split.file).stem.split('_')[-1]
    path = folder / f'person_keypoints_{part}_{name}_results.json'
    path.write_text(json.dumps(plain(detections), allow_nan=False), 'utf-8')
    with zipfile.ZipFile(path.with_suffix('.zip'), 'w', zipfile.ZIP_DEFLATED) as stream:
        stream.write(path, path.name)
    return path, path.with_suffix('.zip')


def write_pictures(folder, split, evaluation, detections, count, sure):
    """Writes `count` photos with predictions beside the truth, the worst and the best in turn.

    evaluation: a COCOeval after evaluate(). sure: the value that a joint to be shown exceeds.
    """
    shares, people = found_shares(evaluation), split.count_people()
    numbers = [n for n in split.ids.argsort() if split.ids[n] in shares]
    # Of equally good pictures those with more people tell more.
    ranked = sorted(numbers, key=lambda n: (shares[split.ids[n]], people[n]))
    worst = [('worst', number) for number in ranked[: count // 2]]
    best = [('best', number) for number in ranked[count // 2 :][::-1][: count - count // 2]]
    order = [pair for pairs in zip_longest(worst, best) for pair in pairs if pair]
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.jpg'):
        old.unlink()
    skeleton, K = split.joints.skeleton, len(split.joints.names)
    for rank, (kind, number) in enumerate(order, 1):
        image_id = split.ids[number]
        try:
            photo = split.read(number)
        except UserError:  # which has been said
            continue
        found = [d for d in detections if d['image_id'] == image_id and d['score'] > VISIBLE]
        seen = np.array([d['keypoints'] for d in found], float).reshape(-1, K, 3)
        seen[..., 2] *= seen[..., 2] > sure  # what refine guessed was not seen
        pictures = [
            draw_people(photo, seen, skeleton, [d['score'] for d in found]),
            draw_people(photo, split.keypoints[split.people(number)], skeleton),
        ]
        picture = beside(pictures, [f'predicted: {shares[image_id]:.0%} found', 'truth'])
        name = f'{rank:02d}-{kind}-{shares[image_id]:.2f}-{image_id}.jpg'
        save_picture(folder / name, picture)


def found_shares(evaluation):
    """How much of each photo's people was found, 0 to 1, by id; photos of nobody are left out.

    Of as many best detections as there are people, the share that matches one, averaged over
    COCO's thresholds of similarity. evaluation: a COCOeval after evaluate().
    """
    shares = {}
    for result in evaluation.evalImgs[: len(evaluation.params.imgIds)]:  # people of all sizes
        people = int((1 - result['gtIgnore']).sum()) if result else 0
        if people:
            counted = result['dtMatches'][:, :people] * ~result['dtIgnore'][:, :people]
            shares[result['image_id']] = (counted > 0).sum(1).mean() / people
    return shares
