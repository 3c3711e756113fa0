"""Pictures of people and of the maps that they are found in: one colour per person."""

import colorsys

import cv2
import numpy as np

GROUND = (26, 26, 26)  # of sheets and their titles, on which every person's colour is bright
PAPER = (235, 235, 235)  # of text on it
GREY = (170, 170, 170)  # of people who are nobody's match
TITLE, GAP = 24, 6  # pixels: the height of a title, and between pictures


def save_picture(path, picture, quality=95):
    """Writes a picture (H, W, 3) uint8 RGB; quality: of a JPEG, up to 100. Raises OSError.

    OpenCV's own writer only returns False, for example where the disk is full.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    try:
        encoded, data = cv2.imencode(path.suffix, picture[..., ::-1], options)
    except cv2.error:
        encoded = False
    if not encoded:
        raise OSError(f'{path}: no picture of shape {picture.shape} can be stored in this format')
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def bright_colour(hue):
    """An RGB colour; hue: from 0 to 1, in the order of the rainbow."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, 1))


def person_colour(number):
    """A bright RGB colour; neighbours in number are far apart in hue."""
    return bright_colour(number * 0.618034 % 1)  # the golden ratio spreads evenly


def draw_people(photo, people, skeleton, scores=None, side=640, seen=None, colours=None):
    """A copy of the photo, enlarged to at least `side` pixels, with joints, limbs and scores.

    photo (H, W, 3) uint8 RGB; people (P, K, 3+) of x, y in its pixels and a value, 0 where missing;
    skeleton: pairs of joints. seen (P, K): all joints but those that were filled in, which are
    hollow and have no limbs. colours: in place of `person_colour`.
    """
    zoom = max(1.0, side / max(photo.shape[:2]))
    canvas = cv2.resize(photo, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    width = max(1, round(max(canvas.shape[:2]) / 200))
    for number, person in enumerate(people):
        colour = colours[number] if colours else person_colour(number)
        points = np.round(person[:, :2] * zoom).astype(int)
        found = person[:, 2] > 0
        solid = found if seen is None else found & seen[number]
        for a, b in skeleton:
            if solid[a] and solid[b]:
                cv2.line(canvas, points[a].tolist(), points[b].tolist(), colour, width, cv2.LINE_AA)
        for point in points[found & ~solid].tolist():
            cv2.circle(canvas, point, width + 2, colour, max(1, round(width / 2)), cv2.LINE_AA)
        for point in points[solid]:
            draw_dot(canvas, point, colour, width + 1)
        if scores is not None and solid.any():
            label(canvas, f'{scores[number]:.2f}', points[solid].min(0).tolist(), colour)
    return canvas


def label(canvas, text, corner, colour=(255, 255, 255), scale=1.0):
    """Writes text on a dark ground above `corner` (x, y), or just below the photo's edge."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, scale * max(canvas.shape[:2]) / 1400
    (w, h), _ = cv2.getTextSize(text, font, size, 1)
    x = min(max(corner[0], 0), canvas.shape[1] - w)
    y = max(corner[1], h + 4)
    cv2.rectangle(canvas, (x, y - h - 4), (x + w, y + 2), (0, 0, 0), -1)
    cv2.putText(canvas, text, (x, y - 2), font, size, colour, 1, cv2.LINE_AA)


def draw_heatmaps(photo, det, names, matrix=None, side=300):
    """A sheet of heatmaps on the darkened photo, all joints first: (H, W, 3) uint8 RGB.

    det (K, h, w), matrix (2, 3): from its frame to the photo's pixels; without it both show the
    same. Colours go from 0 to 1; beside a joint's name stands the highest value on the photo.
    """
    small, planes = laid_over(photo, np.clip(det, 0, 1), matrix, side)
    dark = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) * 0.45
    cells = []
    for name, plane in zip(['all joints', *names], [planes.max(0), *planes], strict=True):
        share = np.sqrt(plane)[..., None]  # of the colour, so that weak peaks are seen, too
        cell = dark * (1 - share) + coloured(plane, 0, 1, cv2.COLORMAP_TURBO) * share
        cells.append(titled(cell.astype(np.uint8), f'{name}: up to {plane.max():.2f}'))
    return in_grid(cells)


def draw_tags(photo, tag, people, names, skeleton, matrix=None, side=300):
    """A sheet that shows how joints are grouped (the paper's figure 4): (H, W, 3) uint8 RGB.

    Above, the photo with its people, and for each pass of the network a chart of the tag of every
    joint, in the colour of the person that it was assigned to. Below, the tags of the first pass in
    the colours of the bar under its chart, with the joints found.
    tag (K, h, w, D), people (P, K, 3 + D) as `multiperson` returns them.
    """
    found = people[..., 2] > 0  # (P, K)
    view = fitted(draw_people(photo, people, skeleton), 640)
    ends = [tag_range(people[found][:, 3 + d], tag[..., d]) for d in range(tag.shape[3])]
    titles = ('tag of the photo', 'tag of its mirror image')
    charts = [
        draw_chart(people[..., 2], people[..., 3 + d], names, ends[d], titles[d], (640, 520))
        for d in range(len(ends))
    ]
    top = stacked([titled(view, f'people: {len(people)}'), *charts], axis=1)
    small, planes = laid_over(photo, tag[..., 0], matrix, side)
    zoom = small.shape[1] / photo.shape[1]
    cells = []
    for k, (name, plane) in enumerate(zip(names, planes, strict=True)):
        cell = coloured(plane, *ends[0])
        for number in np.flatnonzero(found[:, k]):
            draw_dot(cell, people[number, k, :2] * zoom, person_colour(number), 5)
        cells.append(titled(cell, name))
    caption = 'tags of the photo everywhere, in the colours of the bar; dots: joints found'
    return stacked([top, titled(in_grid(cells), caption)])


def draw_chart(values, tags, names, ends, title, size):
    """A chart (rows, columns of `size`, 3) of tags: one row per joint, a dot for each found.

    values, tags (P, K); ends: the lowest and the highest tag on the axis. A line in a person's
    colour marks the mean of its tags, and a bar shows the colours of the maps.
    """
    height, width = size
    left, right, top, bottom, grey = 130, width - 20, TITLE + 8, height - 56, (60, 60, 60)
    chart = np.full((height, width, 3), GROUND, np.uint8)
    write(chart, title, (left, TITLE - 7))
    low, high = ends
    column = lambda tag: round(left + (tag - low) / (high - low) * (right - left))  # noqa: E731
    row = lambda k: round(top + (k + 0.5) / len(names) * (bottom - top))  # noqa: E731
    for k, name in enumerate(names):
        cv2.line(chart, (left, row(k)), (right, row(k)), grey, 1)
        write(chart, name, (8, row(k) + 5), left - 16)
    for tick, text in axis_ticks(low, high):
        cv2.line(chart, (column(tick), top), (column(tick), bottom + 5), grey, 1)
        write(chart, text, (column(tick) - 4 * len(text), bottom + 20))
    bar = coloured(np.linspace(0, 1, right - left)[None].repeat(12, 0), 0, 1)
    chart[height - 24 : height - 12, left:right] = bar
    for number in np.flatnonzero((values > 0).any(1)):
        x = column(tags[number][values[number] > 0].mean())
        cv2.line(chart, (x, top), (x, bottom), person_colour(number), 1)
    for number, k in np.argwhere(values > 0):
        draw_dot(chart, (column(tags[number, k]), row(k)), person_colour(number), 5)
    return chart


def tag_range(found, tags):
    """The lowest and the highest tag to show: those found with some room, or those of the map."""
    low, high = (found.min(), found.max()) if len(found) > 0 else np.quantile(tags, (0.01, 0.99))
    room = max(0.08 * (high - low), 0.5 - (high - low) / 2, 1e-6 * abs(high))
    return float(low - room), float(high + room)


def axis_ticks(low, high):
    """About six round numbers between two ends, each with its text."""
    rough = (high - low) / 6
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit > 0.99 * rough)
    digits = max(0, -int(np.floor(np.log10(step))))
    numbers = range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
    return [(number * step, f'{number * step:.{digits}f}') for number in numbers]


def laid_over(photo, maps, matrix, side):
    """The photo at `side` pixels, and maps (K, H, W), see `draw_heatmaps`, in the same frame."""
    _, H, W = maps.shape
    small = fitted(photo, side)
    zoom = np.array([small.shape[1], small.shape[0]]) / (photo.shape[1], photo.shape[0])
    if matrix is None:
        matrix = np.diag([photo.shape[1] / W, photo.shape[0] / H]) @ np.eye(2, 3)
    matrix = zoom[:, None] * matrix
    # OpenCV counts from the middle of the first pixel, we from its corner.
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    size, planes = small.shape[1::-1], np.asarray(maps, np.float32)
    planes = [cv2.warpAffine(p, matrix, size, borderMode=cv2.BORDER_REPLICATE) for p in planes]
    return small, np.stack(planes)


def coloured(plane, low, high, colours=cv2.COLORMAP_INFERNO):
    """A map (H, W) in colours (H, W, 3) uint8, the first at `low` and the last at `high`."""
    share = (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(share, colours), cv2.COLOR_BGR2RGB)


def fitted(picture, side):
    """A picture resized so that its longer side is `side` pixels."""
    height, width = picture.shape[:2]
    size = [max(1, round(side * edge / max(height, width))) for edge in (width, height)]
    way = cv2.INTER_AREA if side < max(height, width) else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=way)


def draw_dot(canvas, point, colour, radius):
    """A disc with a thin white rim at `point` (x, y)."""
    x, y = np.round(point).astype(int).tolist()
    cv2.circle(canvas, (x, y), radius, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, (x, y), radius - 1, colour, -1, cv2.LINE_AA)


def write(canvas, text, corner, room=None):
    """Writes text with its lower left corner at (x, y), smaller where it is wider than `room`."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (width, _), _ = cv2.getTextSize(text, font, size, 1)
    size *= min(1, (room or width) / width)
    cv2.putText(canvas, text, corner, font, size, PAPER, 1, cv2.LINE_AA)


def titled(picture, title, least=150):
    """A picture under its title, on a ground at least `least` pixels wide."""
    height, width = picture.shape[:2]
    ground = np.full((TITLE + height, max(width, least), 3), GROUND, np.uint8)
    ground[TITLE:, :width] = picture
    write(ground, title, (3, TITLE - 7), ground.shape[1] - 6)
    return ground


def in_grid(cells, columns=None):
    """Pictures in rows, left to right, on a dark ground; by default in more columns than rows."""
    columns = columns or int(np.ceil(np.sqrt(1.6 * len(cells))))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return stacked([stacked(row, axis=1) for row in rows])


def stacked(pictures, axis=0):
    """Pictures one under another, or with axis 1 side by side, on a dark ground."""
    across, padded = max(picture.shape[1 - axis] for picture in pictures), []
    for picture in pictures:
        room = [GAP, across - picture.shape[1 - axis]][:: 1 - 2 * axis]  # below, to the right
        ground = np.full((*np.add(picture.shape[:2], room), 3), GROUND, np.uint8)
        ground[: picture.shape[0], : picture.shape[1]] = picture
        padded.append(ground)
    return np.concatenate(padded, axis)
