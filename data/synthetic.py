"""Draws people in the format of COCO keypoints, to try the project out without COCO.

A body is a handful of spheres in three dimensions; every part of it (a thigh, the shirt, the face)
is the convex hull of a few of them as seen by a level camera. Lengths of a body are fractions of
its standing height; its axes are x to the right of the viewer, y down and z towards the viewer.
Left and right are told by the way a person faces alone, so mirrored pictures stay truthful.
"""

import colorsys
import contextlib
import glob
import json
import multiprocessing
import os
import platform
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.coco_pose import dp, ref
from utils.errors import UserError

CACHE = Path('data/cache')
VERSION = 2  # of the drawings: a change of it has the sets in the cache drawn anew
SPLITS = ('train2017', 'val2017')

FINE = 2  # drawn this many times finer than the picture, then averaged
HEAD, TRUNK, ARM, FOREARM, THIGH, SHIN = 1, 2, 3, 5, 7, 9  # of limbs the left; the right is 1 more
FOREGROUND = 255  # in the map of who owns a pixel: 0 nobody, then the people from 1
CIRCLE = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
CIRCLE *= 16 * FINE  # OpenCV takes sixteenths of a pixel
# The points of a body that can be labelled: COCO's joints, by which it is posed, and two more.
BODY = len(ref.COCO.names)
POINTS = (*ref.COCO.names, 'head', 'neck')
# The parts on which a point lies: where another part covers it, it is hidden.
HOMES = [{HEAD}] * 5 + [
    {part + side for part in parts}
    for parts in ((ARM,), (ARM, FOREARM), (FOREARM,), (THIGH,), (THIGH, SHIN), (SHIN,))
    for side in (0, 1)
]
HOMES += [{HEAD}, {TRUNK}]
# Sets of joints by their names, each with its limbs. The pictures are the same with all of them.
SETS = {
    'coco': (ref.COCO.names, ref.COCO.skeleton),
    'five': (
        ('head', 'left_shoulder', 'right_shoulder', 'left_hip', 'right_hip'),
        ((0, 1), (0, 2), (1, 3), (2, 4), (3, 4)),
    ),
    'crowdpose': (
        (
            *('left_shoulder', 'right_shoulder', 'left_elbow', 'right_elbow', 'left_wrist'),
            *('right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle'),
            *('right_ankle', 'head', 'neck'),
        ),
        ((12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7),
         (6, 8), (8, 10), (7, 9), (9, 11)),
    ),
}  # fmt: skip
# A shoulder or a hip nearer than this lies on the trunk too; one behind it is hidden by the trunk.
FAR = (-0.075, -0.075, *[-9] * 4, -0.043, -0.043, *[-9] * 4)


def _colour(rng, saturation=(0.0, 0.8), value=(0.15, 0.95), hue=(0.0, 1.0)):
    ranges = (hue, saturation, value)
    return 255 * np.array(colorsys.hsv_to_rgb(*(rng.uniform(*ends) for ends in ranges)))


def _aim(side, out, forward):
    """Direction of a limb raised from hanging by so many degrees sideways and forward."""
    out, forward = np.radians(out), np.radians(forward)
    return np.array(
        [side * np.sin(out), np.cos(out) * np.cos(forward), np.cos(out) * np.sin(forward)]
    )


def _bend(direction, towards, degrees):
    """Turn a unit vector towards another one."""
    towards = towards - direction * (direction @ towards)
    towards = towards / (np.linalg.norm(towards) + 1e-9)
    return np.cos(np.radians(degrees)) * direction + np.sin(np.radians(degrees)) * towards


def _rotation(axis, degrees):
    return cv2.Rodrigues(np.radians(degrees) * np.eye(3)[axis])[0]


def _arms(rng, side):
    """Directions of an upper arm and a forearm, in the frame of the trunk."""
    kind = rng.choice(5, p=(0.36, 0.22, 0.2, 0.1, 0.12))
    out = rng.uniform(*((5, 30), (0, 35), (70, 165), (35, 55), (0, 170))[kind])
    forward = rng.uniform(*((-25, 30), (30, 110), (-20, 30), (-25, 0), (-30, 60))[kind])
    elbow = rng.uniform(*((3, 55), (5, 110), (0, 110), (70, 100), (0, 120))[kind])
    upper = _aim(side, out, forward)
    curl = np.array([0, -upper[2], upper[1]]) + rng.normal(0, 0.4, 3)
    if kind == 2:  # raised: up, or over the head
        curl += (-1.0 * side * (rng.random() < 0.4), -1.5, 0)
    if kind == 3:  # a hand on the hip
        curl = np.array([-side, 0.2, 0.3])
    return upper, _bend(upper, curl, elbow)


def _legs(rng):
    """Directions of the thigh and the shin of both legs (left, right), in the frame of the hips."""
    kind = rng.choice(5, p=(0.38, 0.26, 0.12, 0.14, 0.1))
    first = rng.integers(2)
    legs = []
    for leg, side in enumerate((1, -1)):
        lead = leg == first
        out, forward, knee = (
            ((1, 9), (-6, 9), (0, 14)),  # stands
            ((0, 8), (15, 45) if lead else (-35, -5), (5, 35) if lead else (5, 65)),  # strides
            ((14, 36), (-5, 25), (0, 45)),  # legs apart
            ((3, 22), (60, 95), (60, 105)),  # sits
            ((0, 50), (30, 90), (0, 100)) if lead else ((0, 8), (-8, 8), (0, 10)),  # lifts a leg
        )[kind]
        thigh = _aim(side, rng.uniform(*out), rng.uniform(*forward))
        shin = _bend(thigh, np.array([0, thigh[2], -thigh[1]]), rng.uniform(*knee))
        legs.append((thigh, shin))
    return legs


def _view(rng):
    """Turn of the trunk and of the head (3, 3) each, and whether the face is seen."""
    front = rng.random() < 0.8
    turn = np.clip(rng.normal(0, 40 if front else 28), -70, 70)
    head = np.clip(turn + rng.normal(0, 22), *((-84, 84) if front else (-50, 50)))
    lying = rng.choice((-1, 1)) * rng.uniform(50, 100) if rng.random() < 0.03 else 0
    camera = _rotation(2, lying + rng.normal(0, 4)) @ _rotation(0, -rng.uniform(2, 12))
    trunk, head = (camera @ _rotation(1, angle + 180 * (not front)) for angle in (turn, head))
    return trunk, head @ _rotation(0, rng.normal(-3, 9)) @ _rotation(2, rng.normal(0, 7)), front


def _dress(rng):
    """Colours by material, and the materials of forearms and shins."""
    skin = np.array(((246, 212, 186), (226, 178, 142), (190, 134, 96), (136, 90, 62), (96, 62, 44)))
    skin = skin[rng.integers(len(skin))] * rng.uniform(0.92, 1.05)
    hair = np.array(((32, 26, 24), (70, 46, 30), (120, 82, 44), (206, 170, 104), (150, 146, 142.0)))
    colours = {
        'skin': skin,
        'hair': hair[rng.integers(5)] if rng.random() < 0.85 else _colour(rng, (0.5, 0.9)),
        'shirt': _colour(rng, (0.0, 0.95), (0.25, 1.0)),
        'trousers': _colour(rng, (0.0, 0.7), (0.15, 0.8)),
        'shoes': _colour(rng, (0.0, 0.8), (0.1, 0.95)),
        'eye': np.array((30.0, 24, 24)),
        'mouth': skin * (0.72, 0.5, 0.5),
        'nose': skin * (0.86, 0.76, 0.74),
    }
    sleeve = 'shirt' if rng.random() < 0.45 else 'skin'
    return colours, sleeve, 'trousers' if rng.random() < 0.62 else 'skin'


def _skeleton(rng):
    """Pose a body: COCO's joints (17, 3) and the points that are none of these, hips at 0."""
    turn, face, front = _view(rng)
    trunk = _rotation(0, rng.normal(-2, 9)) @ _rotation(2, np.clip(rng.normal(0, 9), -25, 25))
    up = turn @ trunk @ (0, -1, 0)
    twisted = turn @ trunk @ _rotation(1, np.clip(rng.normal(0, 7), -12, 12))
    grow = rng.normal(1, 0.05, 5).clip(0.88, 1.14)
    head = rng.uniform(0.98, 1.3)  # children have large ones
    joints = np.zeros((BODY, 3))
    neck = up * 0.285 * grow[0]
    skull = neck + (0.7 * up + 0.3 * face @ (0, -1, 0)) * (0.055 + 0.068 * head)
    joints[0] = skull + face @ (0, 0.012, 0.064) * head
    for index, (x, y, z) in enumerate(((0.023, -0.008, 0.05), (0.056, 0.004, -0.004))):
        joints[1 + 2 * index] = skull + face @ (x, y, z) * head
        joints[2 + 2 * index] = skull + face @ (-x, y, z) * head
    tips = {'neck': neck, 'skull': skull, 'face': face * head, 'turn': turn, 'front': front}
    for leg, (thigh, shin) in enumerate(_legs(rng)):
        side = 1 - 2 * leg
        upper, lower = _arms(rng, side)
        joints[5 + leg] = neck + twisted @ (side * 0.108 * grow[1], 0, 0)
        joints[7 + leg] = joints[5 + leg] + twisted @ upper * 0.168 * grow[2]
        joints[9 + leg] = joints[7 + leg] + twisted @ lower * 0.148 * grow[2]
        joints[11 + leg] = turn @ (side * 0.062 * grow[3], 0, 0)
        joints[13 + leg] = joints[11 + leg] + turn @ thigh * 0.24 * grow[4]
        joints[15 + leg] = joints[13 + leg] + turn @ shin * 0.235 * grow[4]
        tips['hand', leg] = joints[9 + leg] + twisted @ lower * 0.045
        toes = _bend(shin, np.array([side * 0.3, 0, 1.0]), 75)
        tips['toes', leg] = joints[15 + leg] + turn @ (toes * 0.085 + shin * 0.02)
        tips['heel', leg] = joints[15 + leg] + turn @ (shin * 0.022)
    return joints, tips


def _body(rng):
    """Clothe a posed body: POINTS (n, 3), those that its far side hides, colours and parts.

    A part is (part, material, centres (n, 3), radii (n,)), the farthest first.
    """
    joints, tips = _skeleton(rng)
    colours, sleeve, leg = _dress(rng)
    build, parts = rng.uniform(1.0, 1.4), []

    def add(depth, part, material, centres, radii, scale=build):
        parts.append((depth, part, material, np.array(centres), np.array(radii) * scale))

    neck, skull, face, hips = tips['neck'], tips['skull'], tips['face'], joints[11:13]
    waist = hips * 0.72 + neck * 0.28
    hem = hips * 0.86 + neck * rng.uniform(-0.02, 0.18)
    add(-0.012, TRUNK, 'trousers', [*waist, *hips], (0.046, 0.046, 0.055, 0.055))
    add(-0.02, TRUNK, 'skin', [neck + (skull - neck) * 0.6, neck], (0.03, 0.034))
    shoulders = joints[5:7] * 0.88 + neck * 0.04
    shirt = (0.036, 0.043, 0.043, 0.053, 0.053, 0.054, 0.054)
    add(0, TRUNK, 'shirt', [0.98 * neck, *shoulders, *waist, *hem], shirt)
    for side in (0, 1):
        shoulder, elbow, wrist, hip, knee, ankle = joints[5 + side :: 2]
        deep = (shoulder + elbow)[2] / 2 + 0.03
        add(deep, ARM + side, sleeve, [shoulder, elbow], (0.036, 0.029))
        if sleeve == 'skin':
            end = 0.45 * shoulder + 0.55 * elbow
            add(deep, ARM + side, 'shirt', [shoulder, end], (0.04, 0.036))
        deep = (elbow + wrist)[2] / 2 + 0.035
        add(deep, FOREARM + side, 'skin', [wrist, tips['hand', side]], (0.02, 0.022))
        add(deep, FOREARM + side, sleeve, [elbow, wrist], (0.029, 0.021))
        deep = (hip + knee)[2] / 2 - 0.075
        add(deep, THIGH + side, 'trousers', [hip, knee], (0.058, 0.042))
        deep = (knee + ankle)[2] / 2 - 0.08
        add(deep, SHIN + side, 'shoes', [tips['heel', side], tips['toes', side]], (0.027, 0.02))
        add(deep, SHIN + side, leg, [knee, ankle], (0.041, 0.026))
    size = np.linalg.norm(face[0])
    above = skull[2] + 0.02
    hair = [skull + face @ (0, -0.014, -0.02), skull + face @ (0, -0.022, -0.004)]
    shape = [skull + face @ (0, 0.008, 0.01), skull + face @ (0, 0.042, 0.016)]
    add(above - 0.002 * tips['front'], HEAD, 'hair', hair, (0.06, 0.054), size)
    add(above - 0.001, HEAD, 'skin', shape, (0.05, 0.034), size)
    if rng.random() < 0.35:  # long hair hangs behind the shoulders
        back = -0.03 if tips['front'] else above
        add(back, HEAD, 'hair', [hair[0], skull + face @ (0, 0.11, -0.03)], (0.06, 0.052), size)
    far = joints[:, 2] < np.r_[skull[2] + size * np.array((-0.02, 0.01, 0.01, -0.03, -0.03)), FAR]
    for joint, radius, material in ((3, 0.014, 'skin'), (4, 0.014, 'skin'), (0, 0.011, 'nose'),
                                    (1, 0.009, 'eye'), (2, 0.009, 'eye')):  # fmt: skip
        if not far[joint]:
            add(above + 0.001, HEAD, material, [joints[joint]], (radius,), size)
    if tips['front']:
        lips = skull + np.array([face @ (x, 0.04, 0.042) for x in (-0.012, 0.012)])
        add(above + 0.001, HEAD, 'mouth', lips, (0.006, 0.006), size)
    points = np.array([*joints, skull + face @ (0, -0.062, -0.012), neck])  # as in POINTS
    far = np.r_[far, False, False]
    return points, far, tips['front'], colours, [p[1:] for p in sorted(parts, key=lambda p: p[0])]


def _fill(canvas, centres, radii, colour):
    """Fill the convex hull of circles; `colour` is a number for a map, else (3,)."""
    points = centres[:, None, :2] * (FINE * 16) + radii[:, None, None] * CIRCLE - 8  # (n, 16, 2)
    hull = cv2.convexHull(points.reshape(-1, 2).astype(np.int32))  # sixteenths of a fine pixel
    cv2.fillConvexPoly(canvas, hull, colour, cv2.LINE_8, 4)


def _paint(canvas, centres, radii, colour, light):
    """Draw a part with a dark rim and a lit side; a small one plainly."""
    if radii[0] < 2.5:
        return _fill(canvas, centres, radii, colour)
    _fill(canvas, centres, radii, colour * 0.6)
    _fill(canvas, centres, radii - 0.7, colour)
    lit = centres[:, :2] + light * (0.32 * radii[:, None])
    _fill(canvas, lit, radii * 0.5, colour * 1.1 + 8)


def _background(rng, width, height, horizon):
    """Canvas (FINE * height, FINE * width, 3) of a place without people."""
    rows = np.linspace(0, 1, height)[:, None, None]
    top, low = (_colour(rng, (0, 0.4), (0.4, 1)) for _ in range(2))
    hue = (0.04, 0.45) if rng.random() < 0.7 else (0.5, 0.75)  # earth and grass, or asphalt
    far, near = (_colour(rng, (0, 0.4), (0.2, 0.9), hue) for _ in range(2))
    sky, ground = (1 - rows) * top + rows * low, (1 - rows) * far + rows * near
    canvas = np.where(rows * height < horizon, sky, ground).astype(np.float32).repeat(width, 1)
    for _ in range(rng.integers(5, 22)):
        x, y = rng.uniform((-0.1, -0.1), (1.1, 1.0)) * (width, height)
        w, h = np.exp(rng.uniform(-3.2, -0.7, 2)) * (width, height)
        if rng.random() < 0.5:  # stands on the ground
            y, h = horizon - h, 2 * h * rng.uniform(0.5, 1.0)
        box = np.rint((x, y, x + w, y + h)).astype(int).tolist()
        colour, kind = _colour(rng, (0, 0.6)).tolist(), rng.integers(4)
        if kind == 0:
            cv2.rectangle(canvas, box[:2], box[2:], colour, -1)
            if rng.random() < 0.5:  # windows
                step = int(rng.integers(6, 16))
                pane = (0.7 * np.array(colour)).tolist()
                for left in range(box[0] + 3, box[2] - step // 2, step):
                    for top in range(box[1] + 3, box[3] - step // 2, step):
                        corner = (left + step // 2, top + step // 2)
                        cv2.rectangle(canvas, (left, top), corner, pane, -1)
        elif kind == 1:
            size, angle = (int(w / 2) + 1, int(h / 2) + 1), rng.uniform(0, 180)
            cv2.ellipse(canvas, box[:2], size, angle, 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 2:
            cv2.line(canvas, box[:2], box[2:], colour, int(rng.integers(1, 6)), cv2.LINE_AA)
        else:  # a tree
            y = box[1] = int(horizon - rng.uniform(0.3, 1.2) * w)
            foot = (box[0], int(horizon + rng.uniform(0, 0.15) * height))
            trunk = (86 * rng.uniform(0.5, 1.2), 62.0, 44.0)
            cv2.line(canvas, foot, (box[0], box[1]), trunk, int(rng.integers(2, 7)))
            leaf = _colour(rng, (0.4, 0.65), (0.35, 0.7), (0.1, 0.42))
            for dx, dy in rng.normal(0, 0.35 * w, (9, 2)):
                middle, shade = (int(x + dx), int(box[1] + dy)), leaf * rng.uniform(0.7, 1.2)
                cv2.circle(canvas, middle, int(0.3 * w) + 2, shade.tolist(), -1, cv2.LINE_AA)
    for grain in (2, 6, 24):
        noise = rng.standard_normal((height // grain + 1, width // grain + 1), dtype=np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        canvas += rng.uniform(1, 9) * noise[..., None]
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 2.2)).clip(0, 255).astype(np.uint8)
    return cv2.resize(canvas, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_LINEAR)


def _things(rng, canvas, horizon, light):
    """Draw bars, sticks and balls, as thick and as coloured as limbs are."""
    height, width = np.array(canvas.shape[:2]) / FINE
    for _ in range(rng.integers(0, 8)):
        start = rng.uniform((0, 0.3 * horizon), (width, height))
        angle, length = rng.uniform(0, np.pi), rng.uniform(0, 0.3) * height
        centres = np.array((start, start + length * np.array((np.cos(angle), np.sin(angle)))))
        radii = rng.uniform(0.008, 0.04) * height * rng.uniform(0.7, 1.0, 2)
        colour = _dress(rng)[0]['skin'] if rng.random() < 0.3 else _colour(rng)
        _paint(canvas, centres, radii, colour, light)


def _figure(rng, tall):
    """A person of a standing height in pixels, the hips at the origin."""
    points, far, front, colours, parts = _body(rng)
    parts = [(part, name, centres * tall, radii * tall) for part, name, centres, radii in parts]
    corners = [(c[:, :2] - r[:, None], c[:, :2] + r[:, None]) for *_, c, r in parts]
    low = np.min([c.min(0) for c, _ in corners], 0)
    high = np.max([c.max(0) for _, c in corners], 0)
    return {
        'points': points[:, :2] * tall, 'far': far, 'front': front, 'colours': colours,
        'parts': parts, 'box': np.array((low, high)), 'tall': tall,
    }  # fmt: skip


def _shade(canvas, figure):
    """Darken the ground below a figure."""
    (left, _), (right, bottom) = figure['box'] * FINE
    middle, wide, high = (left + right) / 2, 0.65 * (right - left), 0.07 * figure['tall'] * FINE
    bottom -= 0.2 * high
    rows = slice(*np.clip((bottom - high, bottom + high), 0, canvas.shape[0]).astype(int))
    columns = slice(*np.clip((middle - wide, middle + wide), 0, canvas.shape[1]).astype(int))
    y, x = np.ogrid[rows, columns]
    shade = 1 - ((x - middle) / wide) ** 2 - ((y - bottom) / high) ** 2  # (rows, columns)
    patch = canvas[rows, columns]
    patch[:] = patch * (1 - 0.45 * shade.clip(0, 1))[..., None]


def _move(figure, offset, shape):
    """Put a figure down in the picture and map its parts (fine pixels, 0 for none)."""
    figure['points'] = figure['points'] + offset
    figure['box'] = figure['box'] + offset
    figure['parts'] = [(part, name, c[:, :2] + offset, r) for part, name, c, r in figure['parts']]
    figure['map'] = np.zeros(shape, np.uint8)
    for part, _, centres, radii in figure['parts']:
        _fill(figure['map'], centres, radii, part)
    return figure


def _try_figure(rng, tall, horizon, eye, shape, others):
    """Put one person in front of the others; None if that does not make a fair picture."""
    height, width = shape[0] / FINE, shape[1] / FINE
    figure = _figure(rng, tall)
    (left, top), (right, bottom) = figure['box']
    meet, cut = bool(others) and rng.random() < 0.15, rng.random() < 0.2
    if meet:
        low, high = others[rng.integers(len(others))]['box'][:, 0]
        reach = (right - left + high - low) / 2 * rng.uniform(0.3, 0.9)
        x = (low + high) / 2 + rng.choice((-1, 1)) * reach - (left + right) / 2
    else:
        out = 0.4 * (right - left) if cut else 0
        x = rng.uniform(*np.sort((-left - out, width - right + out)))
    if not cut and not -0.1 * width < x + left < x + right < 1.1 * width:
        return None
    y = min(max(horizon + eye * tall, bottom - top), 0.99 * height) - bottom
    y += rng.uniform(0.05, 0.4) * tall if cut else -rng.uniform(0, 0.03) * tall
    figure = _move(figure, np.array((x, y)), shape)
    seen = figure['map'] > 0
    rests = [other['seen'] & ~seen for other in others]
    for other, rest in zip(others, rests, strict=True):
        if np.count_nonzero(rest) < 0.45 * np.count_nonzero(other['map']):
            return None
    meets = [bool((seen & (other['map'] > 0)).any()) for other in others]
    joints = [j for j, *_ in _labelled(figure, shape) if j < BODY]
    if any(others) and meet != any(meets) or len(joints) < 8:
        return None
    for other, rest, met in zip(others, rests, meets, strict=True):
        other.update(seen=rest, overlaps=other['overlaps'] or met)
    return {**figure, 'seen': seen, 'overlaps': any(meets)}


def _labelled(figure, shape):
    """POINTS that are in the picture and can be labelled, as a list of (index, x, y)."""
    height, width = shape[0] / FINE, shape[1] / FINE
    points = [(j, *map(float, xy)) for j, xy in enumerate(figure['points'].round(2))]
    return [
        (j, x, y)
        for j, x, y in points
        if 0 <= x < width and 0 <= y < height and (figure['front'] or j > 2)
    ]


def _arrange(rng, shape, horizon, people):
    """People from the farthest to the nearest."""
    eye = rng.uniform(0.55, 0.85)
    counts = np.arange(people[0], people[1] + 1)
    weights = np.arange(len(counts), 0, -1)  # the fewer, the more often
    count = rng.choice(counts, p=weights / weights.sum())
    low, high = (0.8, 1.2) if count < 3 else (0.6, 0.9)
    for _ in range(20):
        figures = []
        for tall in np.sort(rng.uniform(low, high, count)) * shape[0] / FINE:
            tries = (_try_figure(rng, tall, horizon, eye, shape, figures) for _ in range(12))
            figures += filter(None, [next(filter(None, tries), None)])
        if len(figures) >= people[0]:
            break
    return figures


def _hide(rng, canvas, figures, light):
    """Draw something in front of people, unless it hides too much of one; its fine mask."""
    height, width = np.array(canvas.shape[:2]) / FINE
    for _ in range(4):
        mask = np.zeros(canvas.shape[:2], np.uint8)
        (low, top), (high, bottom) = figures[rng.integers(len(figures))]['box']
        x, y = rng.uniform((low, top + 0.3 * (bottom - top)), (high, bottom))
        thick = rng.uniform(0.01, 0.05) * height
        ends = (
            ((x, -9), (x + rng.normal(0, 9), height + 9)),  # a pole
            ((-9, y), (width + 9, y + rng.normal(0, 9))),  # a rail
            ((x, y), (x + 0.2 * width, y), (x, height + 9), (x + 0.2 * width, height + 9)),
        )[rng.integers(3)]
        centres, radii = np.array(ends), np.full(len(ends), thick)
        _fill(mask, centres, radii, 1)
        hidden = mask > 0
        rests = [figure['seen'] & ~hidden for figure in figures]
        if all(
            np.count_nonzero(rest) > 0.4 * np.count_nonzero(figure['map'])
            for rest, figure in zip(rests, figures, strict=True)
        ):
            _paint(canvas, centres, radii, _colour(rng), light)
            return hidden
    return np.zeros(canvas.shape[:2], bool)


def _crowd(rng, canvas, horizon):
    """Draw many small people far away; the fine mask of the region that they fill."""
    height, width = np.array(canvas.shape[:2]) / FINE
    bodies = [_figure(rng, 1.0) for _ in range(6)]
    tall = rng.uniform(0.1, 0.17) * height
    left = rng.uniform(-0.2, 0.5) * width
    right = left + rng.uniform(0.35, 0.9) * width
    empty = canvas.copy()
    for y in np.sort(rng.uniform(0.2, 0.9, int((right - left) / tall * 5))):
        body, shirt = bodies[rng.integers(6)], _colour(rng)
        scale = tall * (0.8 + 0.4 * y)
        offset = (rng.uniform(left, right), horizon + (y + 0.3) * tall - body['box'][1, 1] * scale)
        for _, name, centres, radii in body['parts']:
            if radii[0] * scale > 0.4:
                colour = shirt if name == 'shirt' else body['colours'][name]
                _fill(canvas, centres[:, :2] * scale + offset, radii * scale, colour)
    mask = (canvas != empty).any(2).astype(np.uint8)
    kernel = np.ones(2 * [int(0.5 * tall) + 1], np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel) > 0


def _coarse(mask):
    """A fine mask at the size of the picture: the pixels that are covered by half or more."""
    height, width = mask.shape
    size = (width // FINE, height // FINE)
    return cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 127


def _runs(mask):
    """Uncompressed run lengths as in COCO: column by column, beginning with the zeros."""
    flat = np.r_[0, mask.ravel(order='F').astype(np.int8), 2]
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.r_[0, edges])
    return {'counts': counts.tolist(), 'size': list(mask.shape)}


def _polygons(mask):
    """Outlines [[x, y, x, y, ...], ...] of a mask; holes are joined to them by a slit."""
    grown = np.pad(mask.astype(np.uint8).repeat(2, 0).repeat(2, 1), ((1, 2), (1, 2)))
    # Pixel c covers [c, c + 1): the corners of (half) pixels are traced, not their centres.
    grown = cv2.dilate(grown, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, tree = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [cv2.approxPolyDP(contour, 1.4, True) for contour in contours]
    outlines = []
    for index, contour in enumerate(contours):
        if tree[0][index][3] >= 0 or len(contour) < 3:
            continue
        outline, hole = contour[:, 0] - 1, tree[0][index][2]
        while hole >= 0:
            inner = contours[hole][:, 0] - 1
            gaps = np.abs(outline[:, None] - inner).sum(2)
            i, j = np.unravel_index(gaps.argmin(), gaps.shape)
            outline = np.concatenate([outline[: i + 1], inner[j:], inner[: j + 1], outline[i:]])
            hole = tree[0][hole][0]
        outlines.append((outline / 2).ravel().tolist())
    return outlines


def _annotate(figure, owner, number, names):
    """COCO annotation of a person, from the fine map of the owners of the pixels."""
    keypoints = np.zeros((len(POINTS), 3))
    for j, x, y in _labelled(figure, owner.shape):
        row, column = int(y * FINE), int(x * FINE)
        homes = HOMES[j] | ({TRUNK} if j in (5, 6, 11, 12) and not figure['far'][j] else set())
        seen = owner[row, column] == number and figure['map'][row, column] in homes
        keypoints[j] = x, y, 2 if seen and not (j < 5 and figure['far'][j]) else 1
    keypoints = keypoints[[POINTS.index(name) for name in names]]
    mask = _coarse(owner == number)
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return {
        'keypoints': keypoints.ravel().tolist(),
        'num_keypoints': int((keypoints[:, 2] > 0).sum()),
        'area': float(mask.sum()),
        'bbox': [float(x), float(y), float(w), float(h)],
        'segmentation': _polygons(mask) or _runs(mask),
        'iscrowd': 0,
        'category_id': 1,
        'overlaps': figure['overlaps'],
    }


def draw_picture(rng, size, people, joints='coco'):
    """Draw one picture and label it.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        Longer side of the picture, in pixels.
    people : (int, int)
        Fewest and most people; (0, 0) for none, not even a crowd.
    joints : str
        Which of the SETS is labelled.

    Returns
    -------
    image : (height, width, 3) uint8, RGB
    annotations : list of dict
        In the format of COCO without ids, the farthest person first and a crowd last; a person
        has `overlaps` besides, whether the full figure shares pixels with another one.
    """
    short = int(round(size * 0.75))
    sides = ((short, size), (size, short), (size, size))[rng.choice(3, p=(0.1, 0.2, 0.7))]
    height, width = sides
    shape = (height * FINE, width * FINE)
    horizon = rng.uniform(0.18, 0.5) * height
    light = np.array((rng.choice((-1, 1)) * 0.7, -0.7))
    canvas = _background(rng, width, height, horizon)
    crowd = _crowd(rng, canvas, horizon) if people[1] and rng.random() < 0.085 else None
    _things(rng, canvas, horizon, light)
    figures = _arrange(rng, shape, horizon, people) if people[1] else []
    owner = np.zeros(shape, np.uint8)
    for number, figure in enumerate(figures, 1):
        owner[figure['map'] > 0] = number
        _shade(canvas, figure)
        for _, name, centres, radii in figure['parts']:
            _paint(canvas, centres, radii, figure['colours'][name], light)
    if figures and rng.random() < 0.1:
        owner[_hide(rng, canvas, figures, light)] = FOREGROUND
    names, _ = SETS[joints]
    annotations = [
        _annotate(figure, owner, number, names) for number, figure in enumerate(figures, 1)
    ]
    if crowd is not None:
        mask = _coarse(crowd & (owner == 0))
        if mask.any():
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            annotations.append({
                'keypoints': [0.0] * 3 * len(names), 'num_keypoints': 0, 'area': float(mask.sum()),
                'bbox': [float(x), float(y), float(w), float(h)], 'segmentation': _runs(mask),
                'iscrowd': 1, 'category_id': 1,
            })  # fmt: skip
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7)).astype(np.float32)
    image = image * rng.uniform(0.8, 1.1) + rng.uniform(-12, 12)
    image += rng.uniform(1, 5) * rng.standard_normal((height, width, 1), dtype=np.float32)
    return image.clip(0, 255).astype(np.uint8), annotations


def _save_picture(job):
    path, image_id, seed, size, people, joints = job
    rng = np.random.default_rng((seed, image_id))
    image, annotations = draw_picture(rng, size, people, joints)
    if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise OSError(f'{path}: the picture could not be written')
    height, width, _ = image.shape
    picture = {'id': image_id, 'file_name': path.name, 'width': width, 'height': height}
    return picture, annotations


def _start_process():
    cv2.setNumThreads(1)
    # A handler of the calling program would keep the pool from ending its processes.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _save_all(jobs):
    """Generate the results of jobs in their order, from as many processes as there are cores."""
    # A process forked while the threads of cv2 run would wait for them for ever.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    count = min(os.cpu_count() or 1, len(jobs) // 16 + 1)
    try:
        # The processes of this pool end when their parent is killed; those of futures would stay.
        with multiprocessing.Pool(count, _start_process) as pool:
            yield from pool.imap(_save_picture, jobs, chunksize=8)
    finally:
        cv2.setNumThreads(threads)


def category(joints):
    """The entry of `categories` that names one of the SETS; its skeleton counts from 1."""
    names, skeleton = SETS[joints]
    return {
        'id': 1, 'name': 'person', 'supercategory': 'person',
        'keypoints': list(names), 'skeleton': [[a + 1, b + 1] for a, b in skeleton],
    }  # fmt: skip


def _draw_set(folder, info):
    """Draw both splits of a data set into a new folder."""
    jobs, contents, joints = [], {}, info.get('joints', 'coco')
    for split, number in info['pictures'].items():
        images = folder / 'images' / split
        images.mkdir(parents=True)
        contents[split] = {
            'info': info, 'licenses': [], 'images': [], 'annotations': [],
            'categories': [category(joints)],
        }  # fmt: skip
        for index in range(number):
            path = images / f'{len(jobs) + 1:012d}.jpg'
            people = (0, 0) if index % 25 == 12 else info['people']
            jobs.append((path, len(jobs) + 1, info['seed'], info['size'], people, joints))
    overlaps = {split: [] for split in contents}
    with contextlib.closing(_save_all(jobs)) as done:
        for picture, annotations in tqdm(done, folder.name, len(jobs), disable=None):
            split = jobs[picture['id'] - 1][0].parent.name
            contents[split]['images'].append(picture)
            for index, annotation in enumerate(annotations):
                if not annotation['iscrowd']:
                    overlaps[split].append(annotation.pop('overlaps'))
                annotation.update(id=picture['id'] * 100 + index, image_id=picture['id'])
                contents[split]['annotations'].append(annotation)
    (folder / 'annotations').mkdir()
    for split, content in contents.items():
        share = round(float(np.mean(overlaps[split] or [0])), 4)
        content['info'] = {**info, 'overlapping': share}
        path = folder / 'annotations' / f'person_keypoints_{split}.json'
        path.write_text(json.dumps(content, sort_keys=True))


def _alive(pid):
    """Whether a process runs on this machine; taken for granted where that is not to be asked."""
    if os.name == 'nt':  # there, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _same(folder, info):
    """Whether a folder holds the data set described by `info`."""
    try:
        content = json.loads((folder / 'annotations/person_keypoints_val2017.json').read_text())
    except FileNotFoundError:
        return False
    found = {key: content['info'].get(key) for key in {**info, 'joints': None}}
    return found == {'joints': None} | json.loads(json.dumps(info))


def make(folder, pictures=(2000, 200), size=256, people=(1, 4), seed=0, joints='coco'):
    """Draw a data set in the layout of COCO keypoints, complete or not at all.

    A folder that holds the same data set already is left alone.

    Parameters
    ----------
    folder : path
        Gets `images/{train,val}2017/` and `annotations/person_keypoints_{train,val}2017.json`.
    pictures : (int, int)
        Numbers of pictures to train with and to validate with; one in 25 shows nobody.
    size : int
        Longer side of the pictures, in pixels.
    people : (int, int)
        Fewest and most people in the other pictures.
    seed : int
        The same seed draws the same data set, however many processes take part.
    joints : str
        Which of the SETS is labelled.

    Raises
    ------
    FileExistsError
        If the folder exists and holds something else.
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
        if _same(folder, info):
            return
        raise FileExistsError(f'{folder}: holds something else than the data set to be drawn')
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = f'{folder.name}.{platform.node()}-'
    for left in folder.parent.glob(f'{glob.escape(stem)}*.part'):
        pid = left.name[len(stem) : -len('.part')]
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
    part = folder.parent / f'{stem}{os.getpid()}.part'
    try:
        _draw_set(part, info)
        try:
            os.rename(part, folder)
        except OSError:
            if not _same(folder, info):  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def located(config):
    """The config with the paths of the data set of its `data.drawn`, which is made on first use.

    Raises UserError where the folder holds something else.
    """
    drawn = config['data']['drawn']
    joints = drawn_joints(config)
    parts = (*drawn['pictures'], drawn['size'], *drawn['people'], drawn['seed'], VERSION)
    if joints != 'coco':  # the name of the folder as it was before there were others
        parts += (joints,)
    folder = ref.find_path(CACHE / ('people-' + '-'.join(map(str, parts))))
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
