"""A set of drawn people in the format of COCO keypoints, to try the project out without COCO."""

import json
import multiprocessing
import os
import platform
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data import drawing
from data.coco_pose import dp, ref
from data.drawing import ARM, FINE, FOREARM, HEAD, POINTS, SHIN, THIGH, TRUNK
from data.outlines import polygons, run_lengths
from utils import dist
from utils.draw import save_picture
from utils.errors import UserError

CACHE = Path('data/cache')
DAY = 24 * 3600  # seconds
VERSION = 2  # of the drawings: when it changes, the sets in the cache are drawn again
SPLITS = ('train2017', 'val2017')
# The parts on which a point lies: where another part covers it, it is hidden.
LIMBS = ((ARM,), (ARM, FOREARM), (FOREARM,), (THIGH,), (THIGH, SHIN), (SHIN,))
HOMES = [{part + side for part in parts} for parts in LIMBS for side in (0, 1)]
HOMES = [*[{HEAD}] * 5, *HOMES, {HEAD}, {TRUNK}]
# Sets of joints by their names, each with its limbs. The pictures are the same with all of them.
SETS = {
    'coco': (ref.COCO.names, ref.COCO.skeleton),
    'five': (('head', *POINTS[5:7], *POINTS[11:13]), ((0, 1), (0, 2), (1, 3), (2, 4), (3, 4))),
    'crowdpose': (POINTS[5:], ((12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6),
                               (1, 7), (6, 7), (6, 8), (8, 10), (7, 9), (9, 11))),
}  # fmt: skip


def annotate(mask, keypoints, is_crowd):
    """A COCO annotation of a fine mask and keypoints (K, 3).

    A pixel of the picture counts if half of it or more is covered.
    """
    size = np.array(mask.shape[::-1]) // FINE
    mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127
    return {
        'keypoints': keypoints.ravel().tolist(),
        'num_keypoints': int((keypoints[:, 2] > 0).sum()),
        'segmentation': not is_crowd and polygons(mask) or run_lengths(mask),
        'area': float(mask.sum()),
        'bbox': [float(edge) for edge in cv2.boundingRect(mask.astype(np.uint8))],
        'iscrowd': int(is_crowd),
    }


def label_person(figure, owner, number, names):
    """The annotation of a figure, from the fine map of the owners of the pixels."""
    keypoints = np.zeros((len(POINTS), 3))
    for j in drawing.labelled(figure, owner.shape):
        x, y = figure['points'][j]
        row, column = int(y * FINE), int(x * FINE)
        homes = HOMES[j] | ({TRUNK} if j in (5, 6, 11, 12) and not figure['far'][j] else set())
        seen = owner[row, column] == number and figure['map'][row, column] in homes
        keypoints[j] = x, y, 2 if seen and not (j < 5 and figure['far'][j]) else 1
    keypoints = keypoints[[POINTS.index(name) for name in names]]
    return annotate(owner == number, keypoints, False) | {'overlaps': figure['overlaps']}


def draw_picture(rng, size, people, joints='coco'):
    """A picture (height, width, 3) uint8 RGB, and its annotations in COCO's format without ids.

    The farthest person comes first and a crowd last; `overlaps` tells whether a person's full
    figure shares pixels with another one. joints: which of the SETS is labelled.
    """
    image, figures, owner, crowd = drawing.draw(rng, size, people)
    names, _ = SETS[joints]
    annotations = [label_person(f, owner, i, names) for i, f in enumerate(figures, 1)]
    crowd = annotate(crowd, np.zeros((len(names), 3)), True)
    return image, annotations + [crowd] * (crowd['area'] > 0)


def save_drawn(job):
    """Draws and writes a picture; returns its COCO record and its annotations."""
    cv2.setNumThreads(1)
    path, image_id, seed, *settings = job
    image, annotations = draw_picture(np.random.default_rng((seed, image_id)), *settings)
    save_picture(path, image, quality=90)
    height, width, _ = image.shape
    return {'id': image_id, 'file_name': path.name, 'width': width, 'height': height}, annotations


def category(joints):
    """The entry of `categories` that names one of the SETS; its skeleton counts from 1."""
    return {'supercategory': 'person'} | ref.make_category(*SETS[joints])


def draw_set(folder, info):
    """Draws both splits of a data set into a new folder, with a process for each core."""
    jobs, joints = [], info.get('joints', 'coco')
    for split, number in info['pictures'].items():
        (folder / 'images' / split).mkdir(parents=True)
        for index in range(number):
            path = folder / f'images/{split}/{len(jobs) + 1:012d}.jpg'
            people = (0, 0) if index % 25 == 12 else info['people']
            jobs.append((path, len(jobs) + 1, info['seed'], info['size'], people, joints))
    # A process forked while the threads of cv2 run would wait for them for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        # The processes of this pool end when their parent is killed; those of futures would stay.
        # A handler of the calling program for SIGTERM would keep the pool from ending them.
        count = min(os.cpu_count() or 1, len(jobs) // 16 + 1)
        with multiprocessing.Pool(count, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
            found = pool.imap(save_drawn, jobs, chunksize=8)
            found = list(tqdm(found, folder.name, len(jobs), disable=None))
    finally:
        cv2.setNumThreads(threads)
    (folder / 'annotations').mkdir()
    for split, number in info['pictures'].items():
        part, found = found[:number], found[number:]
        annotations = [
            entry | {'id': record['id'] * 100 + n, 'image_id': record['id'], 'category_id': 1}
            for record, entries in part
            for n, entry in enumerate(entries)
        ]
        overlaps = [entry.pop('overlaps') for entry in annotations if not entry['iscrowd']]
        content = {
            'info': {**info, 'overlapping': round(float(np.mean(overlaps or [0])), 4)},
            'licenses': [], 'images': [record for record, _ in part], 'annotations': annotations,
            'categories': [category(joints)],
        }  # fmt: skip
        path = folder / f'annotations/person_keypoints_{split}.json'
        path.write_text(json.dumps(content, sort_keys=True), 'utf-8')


def holds(folder, info):
    """Whether a folder holds the data set described by `info`."""
    path = folder / 'annotations/person_keypoints_val2017.json'
    if not path.is_file():
        return False
    found = json.loads(path.read_text('utf-8'))['info']
    return found == info | {'overlapping': found.get('overlapping')}


def make(folder, pictures=(2000, 200), size=256, people=(1, 4), seed=0, joints='coco'):
    """Draws a data set in the layout of COCO keypoints, complete or not at all.

    The folder gets images/{train,val}2017/ and annotations/person_keypoints_{train,val}2017.json.
    pictures: how many to train and to validate with; one in 25 shows nobody. size: pixels of their
    longer side. people: the fewest and the most in the others. joints: which of the SETS is
    labelled. The same seed draws the same set, however many processes take part, and a folder that
    holds it is left alone. Raises FileExistsError where the folder holds something else.
    """
    folder = Path(folder).absolute()
    info = {
        'description': 'Drawn people in the format of COCO keypoints', 'version': VERSION,
        'pictures': dict(zip(SPLITS, map(int, pictures), strict=True)),
        'size': int(size), 'people': [int(number) for number in people], 'seed': int(seed),
    }  # fmt: skip
    if joints != 'coco':  # as it was before there were others
        info['joints'] = joints
    if folder.exists() and any(folder.iterdir()):
        if holds(folder, info):
            return
        raise FileExistsError(f'{folder}: holds something else than the data set to be drawn')
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f'{folder.name}.{platform.node()}-{os.getpid()}.part'
    for left in folder.parent.glob(f'{folder.name}.*.part'):
        if left == part or time.time() - left.stat().st_mtime > DAY:  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        draw_set(part, info)
        try:
            os.rename(part, folder)
        except OSError:
            if not holds(folder, info):  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def located(config):
    """The config with the paths of the data set of its `data.drawn`, which is made on first use.

    Raises UserError where the folder holds something else.
    """
    drawn = config['data']['drawn']
    parts = (*drawn['pictures'], drawn['size'], *drawn['people'], drawn['seed'], VERSION)
    if drawn_joints(config) != 'coco':  # the name of the folder as it was before there were others
        parts += (drawn['joints'],)
    folder = ref.find_path(CACHE / ('people-' + '-'.join(map(str, parts))))
    # One process of each machine draws; where it fails, torchrun ends those that wait.
    while dist.local_rank() > 0 and not folder.exists():
        time.sleep(0.1)
    if not folder.exists():
        print(f'drawing {sum(drawn["pictures"]):,} pictures into {folder}', flush=True)
    try:
        make(folder, **drawn)
    except FileExistsError as error:
        raise UserError(f'{error}; remove it, and it is drawn again') from None
    train, valid = (str(folder / f'annotations/person_keypoints_{split}.json') for split in SPLITS)
    paths = {'images': str(folder / 'images'), 'annotations': train, 'valid_annotations': valid}
    return config | {'data': config['data'] | paths}


def drawn_joints(config):
    """The name of one of the SETS, `data.drawn.joints` of a config. Raises UserError."""
    joints = config['data']['drawn']['joints']
    if joints not in SETS:
        raise UserError(f'data.drawn.joints is {joints!r}: expected one of {", ".join(SETS)}')
    return joints


def prepare(config, made_for=None):
    """As `data.coco_pose.dp.prepare`, on drawn people; draws nothing yet."""
    joints = drawn_joints(config)
    return ref.fill_in(config, category(joints), f'data.drawn.joints={joints}', made_for)


def init(config, samples_done=0, train=True):
    """As `data.coco_pose.dp.init`, on drawn people."""
    return dp.init(located(config), samples_done, train)
