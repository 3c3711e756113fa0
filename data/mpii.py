"""MPII Human Pose's annotations as a COCO keypoint file.

python -m data.mpii mpii_human_pose_v1_u12_1.mat mpii.json --valid valid.json --images images/

The file has MPII's 16 joints, and beside COCO's fields `head_size`, which PCKh divides distances
by, and `single_person`, whether MPII counts the person as apart from others. People whose joints
MPII does not give are crowds, which training masks. --valid takes the photos of every tenth video
out for validation. --images is where the photos lie: their sizes are in no other place. MPII's
test photos have no annotations, and are left out.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from PIL import Image

from data.coco_pose.annotations import IN_BOX
from data.coco_pose.ref import make_category
from utils.checkpoint import write_json
from utils.errors import UserError, exit_code, import_extra

JOINTS = (
    'right_ankle', 'right_knee', 'right_hip', 'left_hip', 'left_knee', 'left_ankle', 'pelvis',
    'thorax', 'upper_neck', 'head_top', 'right_wrist', 'right_elbow', 'right_shoulder',
    'left_shoulder', 'left_elbow', 'left_wrist',
)  # fmt: skip
LIMBS = (
    (0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12),
    (12, 7), (7, 13), (13, 14), (14, 15),
)  # fmt: skip


def read_release(path):
    """The struct RELEASE of MPII's file as nested dicts. Raises UserError."""
    io = import_extra('scipy.io')
    try:
        return io.loadmat(path, simplify_cells=True)['RELEASE']
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error})') from None
    except Exception:  # of as many kinds as ways to be no such file
        raise UserError(f'{path} is no annotation file of MPII: expected RELEASE in it') from None


def structs(value):
    """The entries of a struct array as dicts, of which MATLAB makes one, several or []."""
    return [entry for entry in np.ravel(value) if isinstance(entry, dict)]


def has(rect, *keys):
    """Whether a struct has a number in each of these fields, which may be missing or []."""
    return all(np.size(rect.get(key, ())) == 1 for key in keys)


def person(rect):
    """The fields of a person from MPII's rectangle of its head; none if that tells nothing."""
    keypoints = np.zeros((len(JOINTS), 3))
    for points in structs(rect.get('annopoints')):
        for point in structs(points['point']):
            # Joints of the head are visible without a mark. MATLAB counts pixels from 1.
            seen = 1 if str(point.get('is_visible')) == '0' else 2
            keypoints[int(point['id'])] = point['x'] - 1, point['y'] - 1, seen
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    if len(labelled):
        corner, size = labelled.min(0), np.ptp(labelled, 0)
    elif has(rect, 'objpos', 'scale'):
        size = np.full(2, 200 * rect['scale'])  # a person's height
        corner = [rect['objpos']['x'] - 1, rect['objpos']['y'] - 1] - size / 2
    else:
        return {}
    fields = {'keypoints': keypoints.ravel().tolist(), 'num_keypoints': len(labelled)}
    fields |= {'bbox': [*corner.tolist(), *size.tolist()], 'area': IN_BOX * float(size.prod())}
    if has(rect, 'x1', 'y1', 'x2', 'y2'):
        diagonal = np.hypot(rect['x2'] - rect['x1'], rect['y2'] - rect['y1'])
        fields['head_size'] = 0.6 * float(diagonal)
    return fields | {'iscrowd': int(len(labelled) == 0)}


def read_photos(release, images):
    """Of each training photo COCO's entry, those of its people, and the number of its video."""
    for place, photo in enumerate(structs(release['annolist'])):
        if not np.ravel(release['img_train'])[place]:
            continue
        record = {'id': place + 1, 'file_name': str(photo['image']['name'])}
        if images:
            try:
                with Image.open(images / record['file_name']) as image:
                    record['width'], record['height'] = image.size
            except OSError:
                raise UserError(f'cannot read photo {images / record["file_name"]}') from None
        people, apart = [], np.ravel(release['single_person'][place])
        for number, rect in enumerate(structs(photo['annorect']), 1):
            if fields := person(rect):
                fields |= {'image_id': place + 1, 'category_id': 1}
                people.append(fields | {'single_person': number in apart})
        yield record, people, int(photo['vididx']) if has(photo, 'vididx') else place


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('mat', help="MPII's annotation file")
    parser.add_argument('out', type=Path, help='the COCO file to write')
    parser.add_argument('--valid', type=Path, metavar='FILE', help='a COCO file for validation')
    parser.add_argument('--images', type=Path, metavar='FOLDER', help="MPII's photos")
    args = parser.parse_args()
    files = {args.out: [], args.valid: []}
    for *photo, video in read_photos(read_release(args.mat), args.images):
        files[args.valid if args.valid and video % 10 == 0 else args.out].append(photo)
    for path, photos in files.items():
        if path:
            people = [entry for _, entries in photos for entry in entries]
            people = [{'id': number} | entry for number, entry in enumerate(people, 1)]
            content = {'images': [record for record, _ in photos], 'annotations': people}
            content['categories'] = [make_category(JOINTS, LIMBS)]
            write_json(path, content, indent=None)
            count = sum(not entry['iscrowd'] for entry in people)
            print(f'{path}: {len(photos):,} photos, {count:,} people with joints')


if __name__ == '__main__':
    sys.exit(exit_code(main))
