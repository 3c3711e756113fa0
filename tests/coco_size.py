"""A stand-in of COCO 2017's training annotations, to measure what its size costs.

python -m tests.coco_size FILE            239 MB: 118,287 images, 262,465 annotations
python -m tests.coco_size FILE --measure  CPU seconds and memory of opening FILE's splits

No part of the tests: writing such a file takes minutes. Its photos, in images/ beside it, are three
of noise under as many names. Whole commands are measured with
/usr/bin/time -v python train.py -e NAME --set data.images=images data.annotations=FILE ...
"""

import argparse
import gc
import json
import time
from pathlib import Path

import cv2
import numpy as np

IMAGES, ANNOTATIONS, WITH_JOINTS, CROWDS = 118_287, 262_465, 149_813, 4_000
SIZES = (480, 640), (640, 480), (427, 640)  # of photo number i the size i % 3
OUTLINE = 27  # points of a person's outline: which make the file as large as COCO's


def make_image(image_id):
    """The entry of an image as COCO's file has it."""
    height, width = SIZES[image_id % 3]
    return {
        'license': 3,
        'file_name': f'{image_id:012d}.jpg',
        'coco_url': f'http://images.cocodataset.org/train2017/{image_id:012d}.jpg',
        'height': height,
        'width': width,
        'date_captured': '2013-11-14 11:18:45',
        'flickr_url': f'http://farm9.staticflickr.com/8186/{image_id}_c8a7e4b5_z.jpg',
        'id': image_id,
    }


def make_annotation(number, image, rng):
    """The entry of a person, the first ones with joints and the last ones crowds."""
    height, width = image['height'], image['width']
    crowd = number >= ANNOTATIONS - CROWDS
    keypoints = np.zeros((17, 3), int)
    if number < WITH_JOINTS:
        keypoints[:] = rng.integers((0, 0, 0), (width, height, 3), (17, 3))
        keypoints[keypoints[:, 2] == 0] = 0
    outline = rng.uniform(0, height, 2 * OUTLINE).round(2).tolist()
    cuts = np.sort(rng.integers(0, height * width, 200))
    counts = np.diff(cuts, prepend=0, append=height * width).tolist()
    return {
        'segmentation': {'counts': counts, 'size': [height, width]} if crowd else [outline],
        'num_keypoints': int((keypoints[:, 2] > 0).sum()),
        'area': round(float(rng.uniform(500, 50000)), 4),
        'iscrowd': int(crowd),
        'keypoints': keypoints.flatten().tolist(),
        'image_id': image['id'],
        'bbox': rng.uniform(0, 400, 4).round(2).tolist(),
        'category_id': 1,
        'id': number + 183_126,
    }


def write(file):
    """Writes the file, and beside it images/ with hard links to a photo of each size."""
    rng = np.random.default_rng(0)
    valid = np.loadtxt(Path(__file__).parents[1] / 'data/coco_pose/valid_id', dtype=int)
    others = np.setdiff1d(np.arange(1, 5 * IMAGES), valid)
    ids = np.sort(np.concatenate([valid, rng.choice(others, IMAGES - len(valid), False)]))
    images = [make_image(int(image_id)) for image_id in ids]
    owners = np.sort(rng.choice(IMAGES, 64_115, False))  # the images that show anybody
    owners = np.concatenate([owners, rng.choice(owners, ANNOTATIONS - len(owners))])
    content = {
        'info': {},
        'licenses': [],
        'images': images,
        'annotations': [make_annotation(n, images[i], rng) for n, i in enumerate(owners)],
        'categories': [{'supercategory': 'person', 'id': 1, 'name': 'person'}],
    }
    file.write_text(json.dumps(content))
    folder = file.with_name('images')
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(SIZES):
        noise = cv2.resize(rng.integers(0, 256, (*np.array(size) // 8, 3), np.uint8), size[::-1])
        cv2.imwrite(str(folder.with_name(f'{number}.jpg')), noise)
    for image in images:
        path = folder / image['file_name']
        path.unlink(missing_ok=True)
        path.hardlink_to(folder.with_name(f'{image["id"] % 3}.jpg'))
    print(f'{file}: {file.stat().st_size / 1e6:.0f} MB')


def measure(file):
    """Prints what opening the splits of a training on the file costs this process."""
    from data.coco_pose import dp
    from task import pose

    def resident():
        gc.collect()
        text = Path('/proc/self/status').read_text()
        return int(text.split('VmRSS:')[1].split()[0]) / 1024

    config = pose.__config__
    paths = {'images': str(file.with_name('images')), 'annotations': str(file)}
    config = config | {'data': config['data'] | paths}
    before, start = resident(), time.process_time()
    loaders = dp.init(dp.prepare(config))
    seconds = time.process_time() - start
    print(f'{seconds:.1f} CPU s, {resident():.0f} MiB resident, {before:.0f} before')
    print(f'{len(loaders["train"].dataset):,} photos to train on')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', type=Path)
    parser.add_argument('--measure', action='store_true')
    args = parser.parse_args()
    measure(args.file) if args.measure else write(args.file)


if __name__ == '__main__':
    main()
