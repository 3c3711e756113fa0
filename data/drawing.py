"""Draws one picture of people in a place, with a map of who owns which pixel.

A body is a handful of spheres in three dimensions; each part of it (a thigh, the shirt, the face)
is the convex hull of a few of them as seen by a level camera. Lengths of a body are fractions of
its standing height; its axes are x to the right of the viewer, y down and z towards the viewer.
Left and right depend only on the way a person faces, so mirrored pictures stay truthful.
"""

import colorsys

import cv2
import numpy as np

from data.coco_pose import ref

FINE = 2  # drawn this many times finer than the picture, then averaged
HEAD, TRUNK, ARM, FOREARM, THIGH, SHIN = 1, 2, 3, 5, 7, 9  # the left limbs; the right are 1 more
FOREGROUND = 255  # in the map of who owns a pixel: 0 is nobody, and people count from 1
CIRCLE = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1)
CIRCLE *= 16 * FINE  # OpenCV takes sixteenths of a pixel
# The points of a body that can be labelled: COCO's joints, which pose it, and two more.
BODY = len(ref.COCO.names)
POINTS = (*ref.COCO.names, 'head', 'neck')
# Nose, eyes and ears, in the frame of the head.
FACE = ((0, 0.012, 0.064), (0.023, -0.008, 0.05), (-0.023, -0.008, 0.05),
        (0.056, 0.004, -0.004), (-0.056, 0.004, -0.004))  # fmt: skip
# From the shoulders down, a joint farther away than this is hidden by the body's own trunk.
FAR = (-0.075, -0.075, *[-9] * 4, -0.043, -0.043, *[-9] * 4)
# Ranges of the degrees by which an upper arm is raised sideways and forward and an elbow is bent,
# the same for thighs and knees (of the two legs of each kind), and how often a kind is chosen.
ARMS = (
    ((5, 30), (-25, 30), (3, 55)),  # hangs
    ((0, 35), (30, 110), (5, 110)),  # reaches forward
    ((70, 165), (-20, 30), (0, 110)),  # raised
    ((35, 55), (-25, 0), (70, 100)),  # a hand on the hip
    ((0, 170), (-30, 60), (0, 120)),  # anything
)
LEGS = (
    [((1, 9), (-6, 9), (0, 14))] * 2,  # stands
    [((0, 8), (-35, -5), (5, 65)), ((0, 8), (15, 45), (5, 35))],  # strides
    [((14, 36), (-5, 25), (0, 45))] * 2,  # legs apart
    [((3, 22), (60, 95), (60, 105))] * 2,  # sits
    [((0, 8), (-8, 8), (0, 10)), ((0, 50), (30, 90), (0, 100))],  # lifts a leg
)
ARM_SHARES, LEG_SHARES = (0.36, 0.22, 0.2, 0.1, 0.12), (0.38, 0.26, 0.12, 0.14, 0.1)


def random_colour(rng, saturation=(0.0, 0.8), value=(0.15, 0.95), hue=(0.0, 1.0)):
    """An RGB colour (3,), 0 to 255, within these ranges."""
    ranges = (hue, saturation, value)
    return 255 * np.array(colorsys.hsv_to_rgb(*(rng.uniform(*ends) for ends in ranges)))


def aim(side, out, forward):
    """The direction of a limb raised from hanging by so many degrees sideways and forward."""
    out, forward = np.radians(out), np.radians(forward)
    return np.array([side * np.sin(out), *(np.cos(out) * f(forward) for f in (np.cos, np.sin))])


def bend(direction, towards, degrees):
    """A unit vector turned towards another one."""
    towards = towards - direction * (direction @ towards)
    towards = towards / (np.linalg.norm(towards) + 1e-9)
    return np.cos(np.radians(degrees)) * direction + np.sin(np.radians(degrees)) * towards


def rotation(axis, degrees):
    return cv2.Rodrigues(np.radians(degrees) * np.eye(3)[axis])[0]


def dress(rng):
    """Colours by material, and the materials of forearms and shins."""
    skin = np.array(((246, 212, 186), (226, 178, 142), (190, 134, 96), (136, 90, 62), (96, 62, 44)))
    skin = skin[rng.integers(len(skin))] * rng.uniform(0.92, 1.05)
    hair = np.array(((32, 26, 24), (70, 46, 30), (120, 82, 44), (206, 170, 104), (150, 146, 142.0)))
    colours = {
        'skin': skin, 'nose': skin * (0.86, 0.76, 0.74), 'mouth': skin * (0.72, 0.5, 0.5),
        'eye': np.array((30.0, 24, 24)),
        'hair': hair[rng.integers(5)] if rng.random() < 0.85 else random_colour(rng, (0.5, 0.9)),
        'shirt': random_colour(rng, (0.0, 0.95), (0.25, 1.0)),
        'trousers': random_colour(rng, (0.0, 0.7), (0.15, 0.8)),
        'shoes': random_colour(rng, (0.0, 0.8), (0.1, 0.95)),
    }  # fmt: skip
    sleeve = 'shirt' if rng.random() < 0.45 else 'skin'
    return colours, sleeve, 'trousers' if rng.random() < 0.62 else 'skin'


def pose_body(rng):
    """A body with its hips at 0: COCO's joints (17, 3), neck, skull, the turned and scaled face
    (3, 3), whether it can be seen, and of each side the hand, the heel and the toes.
    """
    front = rng.random() < 0.8  # whether the face can be seen
    angle = np.clip(rng.normal(0, 40 if front else 28), -70, 70)
    head_angle = np.clip(angle + rng.normal(0, 22), *((-84, 84) if front else (-50, 50)))
    lying = rng.choice((-1, 1)) * rng.uniform(50, 100) if rng.random() < 0.03 else 0
    camera = rotation(2, lying + rng.normal(0, 4)) @ rotation(0, -rng.uniform(2, 12))
    turn, face = (camera @ rotation(1, a + 180 * (not front)) for a in (angle, head_angle))
    face = face @ rotation(0, rng.normal(-3, 9)) @ rotation(2, rng.normal(0, 7))
    trunk = rotation(0, rng.normal(-2, 9)) @ rotation(2, np.clip(rng.normal(0, 9), -25, 25))
    up = turn @ trunk @ (0, -1, 0)
    twisted = turn @ trunk @ rotation(1, np.clip(rng.normal(0, 7), -12, 12))
    grow, head = rng.normal(1, 0.05, 5).clip(0.88, 1.14), rng.uniform(0.98, 1.3)
    joints, tips = np.zeros((BODY, 3)), []
    neck = up * 0.285 * grow[0]
    skull = neck + (0.7 * up + 0.3 * face @ (0, -1, 0)) * (0.055 + 0.068 * head)
    joints[:5] = [skull + face @ point * head for point in FACE]
    legs, lead = LEGS[rng.choice(5, p=LEG_SHARES)], rng.integers(2)
    legs = [[rng.uniform(*ends) for ends in legs[int(leg == lead)]] for leg in (0, 1)]
    for leg, (out, forward, knee) in enumerate(legs):  # the left side, then the right
        side = 1 - 2 * leg
        thigh = aim(side, out, forward)
        shin = bend(thigh, np.array([0, thigh[2], -thigh[1]]), knee)
        kind = rng.choice(5, p=ARM_SHARES)
        out, forward, elbow = (rng.uniform(*ends) for ends in ARMS[kind])
        upper = aim(side, out, forward)
        curl = np.array([0, -upper[2], upper[1]]) + rng.normal(0, 0.4, 3)
        if kind == 2:  # up, or over the head
            curl += (-1.0 * side * (rng.random() < 0.4), -1.5, 0)
        lower = bend(upper, np.array([-side, 0.2, 0.3]) if kind == 3 else curl, elbow)
        joints[5 + leg] = neck + twisted @ (side * 0.108 * grow[1], 0, 0)
        joints[7 + leg] = joints[5 + leg] + twisted @ upper * 0.168 * grow[2]
        joints[9 + leg] = joints[7 + leg] + twisted @ lower * 0.148 * grow[2]
        joints[11 + leg] = turn @ (side * 0.062 * grow[3], 0, 0)
        joints[13 + leg] = joints[11 + leg] + turn @ thigh * 0.24 * grow[4]
        joints[15 + leg] = joints[13 + leg] + turn @ shin * 0.235 * grow[4]
        hand = joints[9 + leg] + twisted @ lower * 0.045
        sole = bend(shin, np.array([side * 0.3, 0, 1.0]), 75) * 0.085 + shin * 0.02
        tips.append((hand, *(joints[15 + leg] + turn @ end for end in (shin * 0.022, sole))))
    return joints, neck, skull, face * head, front, tips


def make_figure(rng, tall):
    """A posed and clothed person of a standing height in pixels, with the hips at the origin.

    points (n, 2) are its POINTS, and far (n,) tells which of them its own body hides; each of its
    parts is (number, material, centres (n, 3), radii (n,)), the farthest first.
    """
    joints, neck, skull, face, front, tips = pose_body(rng)
    colours, sleeve, leg = dress(rng)
    build, parts = rng.uniform(1.0, 1.4), []

    def add(depth, part, material, centres, radii, scale=build):
        spheres = np.array(centres) * tall, np.array(radii) * scale * tall
        parts.append((depth, part, material, *spheres))

    hips = joints[11:13]
    waist, hem = hips * 0.72 + neck * 0.28, hips * 0.86 + neck * rng.uniform(-0.02, 0.18)
    add(-0.012, TRUNK, 'trousers', [*waist, *hips], (0.046, 0.046, 0.055, 0.055))
    add(-0.02, TRUNK, 'skin', [neck + (skull - neck) * 0.6, neck], (0.03, 0.034))
    shoulders = joints[5:7] * 0.88 + neck * 0.04
    shirt = (0.036, 0.043, 0.043, 0.053, 0.053, 0.054, 0.054)
    add(0, TRUNK, 'shirt', [0.98 * neck, *shoulders, *waist, *hem], shirt)
    for side in (0, 1):
        shoulder, elbow, wrist, hip, knee, ankle = joints[5 + side :: 2]
        hand, heel, toes = tips[side]
        depth = (shoulder + elbow)[2] / 2 + 0.03
        add(depth, ARM + side, sleeve, [shoulder, elbow], (0.036, 0.029))
        if sleeve == 'skin':
            cuff = 0.45 * shoulder + 0.55 * elbow
            add(depth, ARM + side, 'shirt', [shoulder, cuff], (0.04, 0.036))
        depth = (elbow + wrist)[2] / 2 + 0.035
        add(depth, FOREARM + side, 'skin', [wrist, hand], (0.02, 0.022))
        add(depth, FOREARM + side, sleeve, [elbow, wrist], (0.029, 0.021))
        depth = (hip + knee)[2] / 2 - 0.075
        add(depth, THIGH + side, 'trousers', [hip, knee], (0.058, 0.042))
        depth = (knee + ankle)[2] / 2 - 0.08
        add(depth, SHIN + side, 'shoes', [heel, toes], (0.027, 0.02))
        add(depth, SHIN + side, leg, [knee, ankle], (0.041, 0.026))
    size, above = np.linalg.norm(face[0]), skull[2] + 0.02
    hair = [skull + face @ (0, -0.014, -0.02), skull + face @ (0, -0.022, -0.004)]
    shape = [skull + face @ (0, 0.008, 0.01), skull + face @ (0, 0.042, 0.016)]
    add(above - 0.002 * front, HEAD, 'hair', hair, (0.06, 0.054), size)
    add(above - 0.001, HEAD, 'skin', shape, (0.05, 0.034), size)
    if rng.random() < 0.35:  # long hair falls behind the shoulders
        back = -0.03 if front else above
        add(back, HEAD, 'hair', [hair[0], skull + face @ (0, 0.11, -0.03)], (0.06, 0.052), size)
    far = joints[:, 2] < np.r_[skull[2] + size * np.array((-0.02, 0.01, 0.01, -0.03, -0.03)), FAR]
    for joint, radius, material in ((3, 0.014, 'skin'), (4, 0.014, 'skin'), (0, 0.011, 'nose'),
                                    (1, 0.009, 'eye'), (2, 0.009, 'eye')):  # fmt: skip
        if not far[joint]:
            add(above + 0.001, HEAD, material, [joints[joint]], (radius,), size)
    if front:
        lips = skull + np.array([face @ (x, 0.04, 0.042) for x in (-0.012, 0.012)])
        add(above + 0.001, HEAD, 'mouth', lips, (0.006, 0.006), size)
    points = np.array([*joints, skull + face @ (0, -0.062, -0.012), neck])  # as in POINTS
    parts = [part for _, *part in sorted(parts, key=lambda part: part[0])]
    low = np.min([(c[:, :2] - r[:, None]).min(0) for *_, c, r in parts], 0)
    high = np.max([(c[:, :2] + r[:, None]).max(0) for *_, c, r in parts], 0)
    return {
        'points': points[:, :2] * tall, 'far': np.r_[far, False, False], 'front': front,
        'colours': colours, 'parts': parts, 'box': np.array((low, high)), 'tall': tall,
    }  # fmt: skip


def fill(canvas, centres, radii, colour):
    """Fills the convex hull of circles; `colour` is a number for a map, else (3,)."""
    points = centres[:, None, :2] * (FINE * 16) + radii[:, None, None] * CIRCLE - 8  # (n, 16, 2)
    hull = cv2.convexHull(points.reshape(-1, 2).astype(np.int32))  # sixteenths of a fine pixel
    cv2.fillConvexPoly(canvas, hull, colour, cv2.LINE_8, 4)


def paint(canvas, centres, radii, colour, light):
    """Draws a part with a dark rim and a lit side; a small one plainly."""
    if radii[0] < 2.5:
        return fill(canvas, centres, radii, colour)
    fill(canvas, centres, radii, colour * 0.6)
    fill(canvas, centres, radii - 0.7, colour)
    lit = centres[:, :2] + light * (0.32 * radii[:, None])
    fill(canvas, lit, radii * 0.5, colour * 1.1 + 8)


def draw_place(rng, width, height, horizon):
    """A canvas (FINE * height, FINE * width, 3) that shows a place without people."""
    rows = np.linspace(0, 1, height)[:, None, None]
    top, low = (random_colour(rng, (0, 0.4), (0.4, 1)) for _ in range(2))
    hue = (0.04, 0.45) if rng.random() < 0.7 else (0.5, 0.75)  # earth and grass, or asphalt
    far, near = (random_colour(rng, (0, 0.4), (0.2, 0.9), hue) for _ in range(2))
    sky, ground = (1 - rows) * top + rows * low, (1 - rows) * far + rows * near
    canvas = np.where(rows * height < horizon, sky, ground).astype(np.float32).repeat(width, 1)
    for _ in range(rng.integers(5, 22)):
        x, y = rng.uniform((-0.1, -0.1), (1.1, 1.0)) * (width, height)
        w, h = np.exp(rng.uniform(-3.2, -0.7, 2)) * (width, height)
        if rng.random() < 0.5:  # stands on the ground
            y, h = horizon - h, 2 * h * rng.uniform(0.5, 1.0)
        left, top, right, bottom = np.rint((x, y, x + w, y + h)).astype(int).tolist()
        colour, kind = random_colour(rng, (0, 0.6)).tolist(), rng.integers(4)
        if kind == 0:
            cv2.rectangle(canvas, (left, top), (right, bottom), colour, -1)
            if rng.random() < 0.5:  # windows
                step = int(rng.integers(6, 16))
                half, pane = step // 2, (0.7 * np.array(colour)).tolist()
                for x in range(left + 3, right - half, step):
                    for y in range(top + 3, bottom - half, step):
                        cv2.rectangle(canvas, (x, y), (x + half, y + half), pane, -1)
        elif kind == 1:
            size, angle = (int(w / 2) + 1, int(h / 2) + 1), rng.uniform(0, 180)
            cv2.ellipse(canvas, (left, top), size, angle, 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 2:
            thick = int(rng.integers(1, 6))
            cv2.line(canvas, (left, top), (right, bottom), colour, thick, cv2.LINE_AA)
        else:  # a tree
            top = int(horizon - rng.uniform(0.3, 1.2) * w)
            foot = (left, int(horizon + rng.uniform(0, 0.15) * height))
            trunk = (86 * rng.uniform(0.5, 1.2), 62.0, 44.0)
            cv2.line(canvas, foot, (left, top), trunk, int(rng.integers(2, 7)))
            leaf = random_colour(rng, (0.4, 0.65), (0.35, 0.7), (0.1, 0.42))
            for dx, dy in rng.normal(0, 0.35 * w, (9, 2)):
                middle, shade = (int(x + dx), int(top + dy)), leaf * rng.uniform(0.7, 1.2)
                cv2.circle(canvas, middle, int(0.3 * w) + 2, shade.tolist(), -1, cv2.LINE_AA)
    for grain in (2, 6, 24):
        noise = rng.standard_normal((height // grain + 1, width // grain + 1), dtype=np.float32)
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        canvas += rng.uniform(1, 9) * noise[..., None]
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 2.2)).clip(0, 255).astype(np.uint8)
    return cv2.resize(canvas, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_LINEAR)


def labelled(figure, shape):
    """Indices of the POINTS in the picture that can be labelled."""
    points, ends = figure['points'], np.array((shape[1], shape[0])) / FINE
    inside = ((points >= 0) & (points < ends)).all(1)
    return np.flatnonzero(inside & (figure['front'] | (np.arange(len(points)) > 2)))


def try_figure(rng, tall, horizon, eye, shape, others):
    """One more figure, in front of the others; None if that does not make a fair picture."""
    height, width = shape[0] / FINE, shape[1] / FINE
    figure = make_figure(rng, tall)
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
    offset, owner = np.array((x, y)), np.zeros(shape, np.uint8)  # which part owns a fine pixel
    figure['parts'] = [(n, name, c[:, :2] + offset, r) for n, name, c, r in figure['parts']]
    for part, _, centres, radii in figure['parts']:
        fill(owner, centres, radii, part)
    figure |= {'points': (figure['points'] + offset).round(2), 'box': figure['box'] + offset,
               'map': owner, 'pixels': np.count_nonzero(owner)}  # fmt: skip
    seen = owner > 0
    if any(np.count_nonzero(other['seen'] & ~seen) < 0.45 * other['pixels'] for other in others):
        return None
    meets = [bool((seen & (other['map'] > 0)).any()) for other in others]
    if others and meet != any(meets) or (labelled(figure, shape) < BODY).sum() < 8:
        return None
    for other, met in zip(others, meets, strict=True):
        other.update(seen=other['seen'] & ~seen, overlaps=other['overlaps'] or met)
    return {**figure, 'seen': seen, 'overlaps': any(meets)}


def arrange(rng, shape, horizon, people):
    """People from the farthest to the nearest."""
    eye = rng.uniform(0.55, 0.85)
    counts = np.arange(people[0], people[1] + 1)
    weights = np.arange(len(counts), 0, -1)  # the fewer, the more often
    count = rng.choice(counts, p=weights / weights.sum())
    low, high = (0.8, 1.2) if count < 3 else (0.6, 0.9)
    for _ in range(20):
        figures = []
        for tall in np.sort(rng.uniform(low, high, count)) * shape[0] / FINE:
            tries = (try_figure(rng, tall, horizon, eye, shape, figures) for _ in range(12))
            figures += filter(None, [next(filter(None, tries), None)])
        if len(figures) >= people[0]:
            break
    return figures


def hide(rng, canvas, figures, light):
    """Draws something in front of people, unless it hides too much of one; its fine mask."""
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
        fill(mask, centres, radii, 1)
        if all(np.count_nonzero(f['seen'] & (mask == 0)) > 0.4 * f['pixels'] for f in figures):
            paint(canvas, centres, radii, random_colour(rng), light)
            return mask > 0
    return np.zeros(canvas.shape[:2], bool)


def draw_crowd(rng, canvas, horizon):
    """Draws many small people far away; the fine mask of the region that they fill."""
    height, width = np.array(canvas.shape[:2]) / FINE
    bodies = [make_figure(rng, 1.0) for _ in range(6)]
    tall = rng.uniform(0.1, 0.17) * height
    left = rng.uniform(-0.2, 0.5) * width
    right = left + rng.uniform(0.35, 0.9) * width
    empty = canvas.copy()
    for y in np.sort(rng.uniform(0.2, 0.9, int((right - left) / tall * 5))):
        body, shirt = bodies[rng.integers(6)], random_colour(rng)
        scale = tall * (0.8 + 0.4 * y)
        offset = (rng.uniform(left, right), horizon + (y + 0.3) * tall - body['box'][1, 1] * scale)
        for _, name, centres, radii in body['parts']:
            if radii[0] * scale > 0.4:
                colour = shirt if name == 'shirt' else body['colours'][name]
                fill(canvas, centres[:, :2] * scale + offset, radii * scale, colour)
    mask = (canvas != empty).any(2).astype(np.uint8)
    kernel = np.ones(2 * [int(0.5 * tall) + 1], np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel) > 0


def draw(rng, size, people):
    """Draws a picture, `size` pixels long, of people[0] to people[1] people; (0, 0): of nobody.

    Returns the picture (height, width, 3) uint8 RGB, its figures, the farthest first, and two maps
    of fine pixels: who owns each (the figures count from 1), and whether it shows a crowd.
    """
    short = int(round(size * 0.75))
    height, width = ((short, size), (size, short), (size, size))[rng.choice(3, p=(0.1, 0.2, 0.7))]
    shape = (height * FINE, width * FINE)
    horizon = rng.uniform(0.18, 0.5) * height
    light = np.array((rng.choice((-1, 1)) * 0.7, -0.7))
    canvas = draw_place(rng, width, height, horizon)
    crowded = people[1] and rng.random() < 0.085
    crowd = draw_crowd(rng, canvas, horizon) if crowded else np.zeros(shape, bool)
    for _ in range(rng.integers(0, 8)):  # bars, sticks and balls, thick and coloured like limbs
        start = rng.uniform((0, 0.3 * horizon), (width, height))
        angle, length = rng.uniform(0, np.pi), rng.uniform(0, 0.3) * height
        centres = np.array((start, start + length * np.array((np.cos(angle), np.sin(angle)))))
        radii = rng.uniform(0.008, 0.04) * height * rng.uniform(0.7, 1.0, 2)
        colour = dress(rng)[0]['skin'] if rng.random() < 0.3 else random_colour(rng)
        paint(canvas, centres, radii, colour, light)
    figures = arrange(rng, shape, horizon, people) if people[1] else []
    owner = np.zeros(shape, np.uint8)
    for number, figure in enumerate(figures, 1):
        owner[figure['map'] > 0] = number
        (left, _), (right, bottom) = figure['box'] * FINE
        middle, wide, high = (left + right) / 2, 0.65 * (right - left), 0.07 * figure['tall'] * FINE
        bottom -= 0.2 * high
        rows = slice(*np.clip((bottom - high, bottom + high), 0, shape[0]).astype(int))
        columns = slice(*np.clip((middle - wide, middle + wide), 0, shape[1]).astype(int))
        y, x = np.ogrid[rows, columns]
        shade = 1 - ((x - middle) / wide) ** 2 - ((y - bottom) / high) ** 2  # on the ground
        patch = canvas[rows, columns]
        patch[:] = patch * (1 - 0.45 * shade.clip(0, 1))[..., None]
        for _, name, centres, radii in figure['parts']:
            paint(canvas, centres, radii, figure['colours'][name], light)
    if figures and rng.random() < 0.1:
        owner[hide(rng, canvas, figures, light)] = FOREGROUND
    picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7)).astype(np.float32)
    picture = picture * rng.uniform(0.8, 1.1) + rng.uniform(-12, 12)
    picture += rng.uniform(1, 5) * rng.standard_normal((height, width, 1), dtype=np.float32)
    return picture.clip(0, 255).astype(np.uint8), figures, owner, crowd & (owner == 0)
