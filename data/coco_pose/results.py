"""Detections: as entries of COCO's results, their scores, a submission, and pictures of them."""

import bisect
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

from utils.draw import GREY, draw_people, person_colour, save_picture, stacked, titled
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
    return {'images': images, 'annotations': annotations, 'categories': [split.category]}


def coco_scores(split, detections, unread=0):
    """COCO's ten figures by name, its summary as text, and the COCOeval itself.

    unread: how many photos could not be read, which is a figure, too, unless it is 0.
    """
    known = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        known.dataset = truth(split)
        known.createIndex()
        # It adds to what it is given, and fails on an empty list, which is a result and scores 0.
        found = known.loadRes(copy.deepcopy(detections)) if detections else COCO()
        evaluation = COCOeval(known, found, 'keypoints')
        evaluation.params.imgIds = split.ids.tolist()
        evaluation.params.kpt_oks_sigmas = np.array(split.joints.sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        evaluation.summarize()
    figures = dict(zip(STATS, evaluation.stats.tolist(), strict=True))
    return figures | ({'unread': unread} if unread else {}), text.getvalue(), evaluation


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


def draw_found(photo, people, seen, scores, joints, sure, colours=None):
    """The photo with those of people (P, K, 3 + D) with good scores (P,), these people, and `seen`.

    Of the joints that refine filled in, all but `seen` (P, K), those whose value exceeds `sure` are
    drawn, hollow: they may be another person's. The others are missing, value 0, in what returns.
    colours: P of them, see `draw_people`.
    """
    good = np.flatnonzero(scores > VISIBLE)
    people, scores, seen = people[good], scores[good], seen[good]
    people[..., 2] *= seen | (people[..., 2] > sure)
    colours = [colours[n] for n in good] if colours else None
    drawn = draw_people(photo, people, joints.skeleton, scores, seen=seen, colours=colours)
    return drawn, people, seen


def compare(photo, split, number, evaluation, sure):
    """A photo's predicted people beside the truth, (H, W, 3) uint8 RGB.

    Who matches an annotated person (at an OKS of 0.5) has that person's colour, and others are
    grey. evaluation: a COCOeval after evaluate(), with its detections. sure: see `draw_found`.
    """
    joints, image_id = split.joints, split.ids[number]
    result, found = photo_result(evaluation, image_id), evaluation.cocoDt.imgToAnns[image_id]
    own = {row + 1: person_colour(n) for n, row in enumerate(split.people(number).tolist())}
    matched = dict(zip(result['dtIds'], result['dtMatches'][0], strict=True)) if result else {}
    people = np.array([d['keypoints'] for d in found], float).reshape(-1, len(joints.names), 3)
    scores, seen = np.array([d['score'] for d in found]), people[..., 2] > 0
    for person, d in zip(seen, found, strict=True):
        person[d['guessed']] = False
    colours = [own.get(matched.get(d['id']), GREY) for d in found]
    share = found_share(result)
    predicted = draw_found(photo, people, seen, scores, joints, sure, colours)[0]
    truth = draw_people(photo, split.keypoints[split.people(number)], joints.skeleton)
    title = 'predicted' if share is None else f'predicted: {share:.0%} found'
    return stacked([titled(predicted, title), titled(truth, 'truth')], axis=1)


def write_pictures(folder, split, evaluation, count, sure):
    """Writes `count` photos with predictions beside the truth, the worst and the best in turn.

    evaluation, sure: see `compare`.
    """
    people = split.count_people()
    shares = {n: found_share(photo_result(evaluation, split.ids[n])) for n in split.ids.argsort()}
    shares = {number: share for number, share in shares.items() if share is not None}
    # Of equally good pictures those with more people tell more.
    ranked = sorted(shares, key=lambda n: (shares[n], people[n]))
    worst = [('worst', number) for number in ranked[: count // 2]]
    best = [('best', number) for number in ranked[count // 2 :][::-1][: count - count // 2]]
    order = [pair for pairs in zip_longest(worst, best) for pair in pairs if pair]
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.jpg'):
        old.unlink()
    for rank, (kind, number) in enumerate(order, 1):
        with contextlib.suppress(UserError):  # which has been said
            picture = compare(split.read(number), split, number, evaluation, sure)
            name = f'{rank:02d}-{kind}-{shares[number]:.2f}-{split.ids[number]}.jpg'
            save_picture(folder / name, picture)


def photo_result(evaluation, image_id):
    """What a COCOeval found out about the people of all sizes in a photo; None without any."""
    return evaluation.evalImgs[bisect.bisect_left(evaluation.params.imgIds, image_id)]


def found_share(result):
    """How much of a photo's people was found, 0 to 1; None in a photo of nobody.

    Of as many best detections as there are people, the share that matches one, averaged over
    COCO's thresholds of similarity. result: see `photo_result`.
    """
    people = int((1 - result['gtIgnore']).sum()) if result else 0
    if not people:
        return None
    counted = result['dtMatches'][:, :people] * ~result['dtIgnore'][:, :people]
    return (counted > 0).sum(1).mean() / people
