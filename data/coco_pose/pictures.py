"""Pictures of an evaluation: predictions beside the truth."""

from collections import Counter
from itertools import zip_longest

import cv2
import numpy as np

from data.coco_pose import ref
from utils.draw import beside, draw_people

VISIBLE = 0.1  # score of the people that pictures show


def write_pictures(folder, split, evaluation, detections, count, sure):
    """Writes `count` photos with predictions beside the truth, the worst and the best in turn.

    evaluation: a COCOeval after evaluate(). sure: the value that a joint to be shown exceeds.
    """
    ids = evaluation.params.imgIds
    shares = {image_id: found_share(evaluation, image_id) for image_id in ids}
    people = Counter(a['image_id'] for a in split.annotations if ref.has_people(a))
    # Of equally good pictures those with more people tell more.
    ranked = sorted((i for i in ids if shares[i] is not None), key=lambda i: (shares[i], people[i]))
    worst, best = ranked[: count // 2], ranked[::-1][: count - count // 2]
    best = [image_id for image_id in best if image_id not in worst]
    kinds = [('best', image_id) for image_id in best], [('worst', image_id) for image_id in worst]
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.jpg'):
        old.unlink()
    order = [pair for pairs in zip_longest(*kinds[::-1]) for pair in pairs if pair]
    skeleton, K = split.joints.skeleton, len(split.joints.names)
    for rank, (kind, image_id) in enumerate(order, 1):
        photo = ref.read_photo(split.path(image_id))
        found = [d for d in detections if d['image_id'] == image_id and d['score'] > VISIBLE]
        truth = [a for a in split.annotations if a['image_id'] == image_id and ref.has_people(a)]
        people = keypoints_of(found, K)
        people[..., 2] *= people[..., 2] > sure  # what refine guessed is no sight
        pictures = [
            draw_people(photo, people, skeleton, [d['score'] for d in found]),
            draw_people(photo, keypoints_of(truth, K), skeleton),
        ]
        picture = beside(pictures, [f'predicted: {shares[image_id]:.0%} found', 'truth'])
        name = f'{rank:02d}-{kind}-{shares[image_id]:.2f}-{image_id}.jpg'
        cv2.imwrite(str(folder / name), picture[..., ::-1])


def found_share(evaluation, image_id):
    """How much of a photo's truth was found, 0 to 1, or None where it shows nobody.

    Of as many best detections as there are people, the share that matches one, averaged over
    COCO's thresholds of similarity. evaluation: a COCOeval after evaluate().
    """
    results = (one for one in evaluation.evalImgs if one and one['image_id'] == image_id)
    result = next(results, None)  # the first is that of people of all sizes
    people = int((1 - result['gtIgnore']).sum()) if result else 0
    if people == 0:
        return None
    counted = result['dtMatches'][:, :people] * ~result['dtIgnore'][:, :people]
    return (counted > 0).sum(1).mean() / people


def keypoints_of(entries, num_parts):
    """The keypoints of COCO entries as (P, K, 3)."""
    return np.array([e['keypoints'] for e in entries], float).reshape(-1, num_parts, 3)
