"""A COCO annotation file as flat arrays: a Split, the part of its photos that one phase uses."""

import contextlib
import functools
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from pycocotools import mask as rle_mask

from data.coco_pose import entries, ref
from data.coco_pose.photo import read_photo
from utils import dist
from utils.errors import UserError
from utils.regions import FAR, pack

LEAST_AREA = 32  # pixels; a smaller person has no joints that anybody could label
IN_BOX = 0.53  # of their box people of COCO cover, and no more of the box of their joints
LARGE = 20_000_000  # bytes of a file whose reading is announced


@dataclass
class Split:
    """N photos of an annotation file, and the A annotations of the whole file, as flat arrays.

    A photo is known by its place, from 0, and so is an annotation, in the order of the file.
    """

    file: str
    category: dict  # of the people: id, name, skeleton, keypoints: None if the file names no joints
    ids: np.ndarray  # (N,)
    names: np.ndarray  # (N,) paths in `folder`
    sizes: np.ndarray  # (N, 2) height and width, 0 where the file does not say
    spans: np.ndarray  # (N, 2) where in `order` a photo's annotations start and end
    order: np.ndarray  # (A,) annotations sorted by their photos
    keypoints: np.ndarray  # (A, K, 3)
    is_person: np.ndarray  # (A,) has labelled joints, and is no crowd
    boxes: np.ndarray  # (A, 4) x, y, width, height
    areas: np.ndarray  # (A,)
    is_crowd: np.ndarray  # (A,)
    regions: dict  # crowds' compressed run lengths by annotation
    upright: bool = False  # whether joints are in the frame of photos turned by EXIF
    estimated: int = 0  # how many areas of people are estimates
    excluded: int = 0  # photos left out of training since they are validated on
    joints: ref.Joints = ref.COCO
    folder: Path = Path()

    def __len__(self):
        return len(self.ids)

    def path(self, number):
        """Where a photo lies."""
        return self.folder / self.names[number]

    def read(self, number):
        """A photo as (H, W, 3) uint8 RGB, in the frame of its annotations. Raises UserError."""
        return read_photo(self.path(number), self.sizes[number], self.upright)

    def annotations(self, number):
        """The annotations of a photo."""
        return self.order[slice(*self.spans[number])]

    def people(self, number):
        """The annotations of a photo that are people with labelled joints."""
        rows = self.annotations(number)
        return rows[self.is_person[rows]]

    def crowds(self, number):
        """A photo's crowds, as regions.draw_mask takes them."""
        rows = self.annotations(number).tolist()
        return [self.regions.get(row, self.boxes[row]) for row in rows if self.is_crowd[row]]

    def count_people(self):
        """How many people with labelled joints each photo shows, (N,)."""
        before = np.append(0, self.is_person[self.order].cumsum())
        return np.diff(before[self.spans])[:, 0]

    def select(self, numbers):
        """The Split of just these photos, in this order."""
        photos = {key: getattr(self, key)[numbers] for key in ('ids', 'names', 'sizes', 'spans')}
        return replace(self, **photos)


class Reader:
    """The arrays of a file while its entries come in. Raises ValueError on one that is wrong."""

    def __init__(self, categories):
        named = [category for category in categories if category.keypoints]
        nameless = {'id': 1, 'name': 'person', 'keypoints': None}
        self.category = msgspec.to_builtins(named[0]) if named else nameless
        self.others = {c.id for c in categories if named and not c.keypoints} - {None}
        self.values = 3 * len(named[0].keypoints) if named else 0  # of a person's keypoints
        self.places, self.names, self.sizes, self.upright = {}, [], [], False
        self.raws, self.regions, self.keypoints, self.given = [], {}, array('d'), False
        self.table = array('d')  # place of the photo, is crowd, area, box

    def add_image(self, entry, raw):
        if self.places.setdefault(entry.id, len(self.names)) < len(self.names):
            raise ValueError(f'id is {entry.id}, as that of an earlier one')
        self.names.append(entry.file_name)
        self.sizes.append([entry.height or 0, entry.width or 0])
        self.upright |= entry.drawn is not None

    def add_annotation(self, entry, raw):
        if entry.category_id in self.others:
            return
        if not self.raws and not self.category['keypoints'] and entry.category_id is not None:
            self.category['id'] = entry.category_id
        keypoints, place = entry.keypoints, self.places.get(entry.image_id, -1)
        if keypoints:
            if not self.values:
                self.values = len(keypoints) // 3 * 3
                self.keypoints.frombytes(bytes(8 * self.values * len(self.raws)))
            labels = keypoints[2::3]
            if len(keypoints) != self.values:
                raise ValueError(f'expected {self.values} keypoint values, found {len(keypoints)}')
            if min(labels) < 0 or max(labels) > 2:
                raise ValueError('expected 0, 1 or 2 as the third keypoint value of a joint')
            self.given = True
        self.keypoints.fromlist(keypoints or [0.0] * self.values)
        if entry.iscrowd and place >= 0 and (region := read_region(raw, self.sizes[place])):
            self.regions[len(self.raws)] = region
        is_crowd, box = entry.iscrowd or 0, entry.bbox or (0, 0, 0, 0)
        self.table.fromlist([place, is_crowd, entry.area or 0, *box])
        self.raws.append(raw)

    def split(self, file):
        """The Split of all that came in."""
        table = np.reshape(self.table, (-1, 7))
        keypoints = np.reshape(self.keypoints, (len(table), self.values // 3, 3))
        places, is_crowd = table[:, 0].astype(int), table[:, 1] > 0
        is_person = keypoints[..., 2].any(1) & ~is_crowd
        order, photos = places.argsort(kind='stable'), np.arange(len(self.names))
        areas, boxes, extents = table[:, 2].copy(), table[:, 3:].copy(), measure(keypoints).prod(1)
        estimated = 0
        # OKS depends on the area: where it is missing or cannot be, it is estimated.
        for row in np.flatnonzero(is_person & (areas <= np.maximum(LEAST_AREA, extents / 100))):
            size = self.sizes[places[row]] if places[row] >= 0 else (0, 0)
            area = estimate_area(areas[row], boxes[row], extents[row], self.raws[row], size)
            estimated += area not in (0, areas[row])
            areas[row] = area
        return Split(
            file=file, category=self.category, regions=self.regions, upright=self.upright,
            ids=np.array(list(self.places), np.int64),
            names=np.array(self.names, np.dtypes.StringDType()),
            sizes=np.array(self.sizes, np.int32).reshape(-1, 2),
            spans=np.stack([places[order].searchsorted(photos + end) for end in (0, 1)], 1),
            order=order, keypoints=keypoints, is_person=is_person, boxes=boxes, areas=areas,
            is_crowd=is_crowd, estimated=estimated,
        )  # fmt: skip


def measure(keypoints):
    """Width and height (P, 2) of the box of the labelled joints of people (P, K, 3)."""
    points, seen = keypoints[..., :2], keypoints[..., 2:] > 0
    return points.max(1, initial=-FAR, where=seen) - points.min(1, initial=FAR, where=seen)


def read_region(raw, size):
    """The segmentation of an entry as regions.pack gives it, or None. Raises ValueError."""
    region = msgspec.json.decode(raw, type=entries.RegionEntry, strict=False).segmentation
    return pack(region, size) if region else None


def estimate_area(given, box, extent, raw, size):
    """The area in pixels of a person whose `given` one cannot be; 0 where nothing has an extent.

    extent: of the box of the joints. Some people are truly small: an area that the others confirm
    stays.
    """
    boxes = [box[2] * box[3], extent]
    estimates = [IN_BOX * box for box in boxes]
    with contextlib.suppress(ValueError):
        region = read_region(raw, list(size))
        estimates[:0] = [float(rle_mask.area(region))] if region else []
    if given > max(boxes) / 100 and any(area / 2 <= given <= 2 * area for area in estimates):
        return given
    least = max(LEAST_AREA, extent / 100)
    return next((area for area in estimates if area > least), max(estimates))


@functools.lru_cache(4)
def parse(file, path, size, mtime):
    """See `read_file`. Entries are decoded one by one: memory holds little more than the arrays."""
    if size > LARGE and dist.rank() == 0:
        print(f'reading {file} ({size / 1e6:.0f} MB)', flush=True)
    content = entries.load(file, path.read_bytes())
    reader = Reader(content.categories or [])
    for kind, struct, add in (
        ('images', entries.ImageEntry, reader.add_image),
        ('annotations', entries.AnnotationEntry, reader.add_annotation),
    ):
        decoder = msgspec.json.Decoder(struct, strict=False)
        for number, raw in enumerate(getattr(content, kind) or ()):
            try:
                add(decoder.decode(raw), raw)
            except ValueError as error:  # as those of msgspec are
                where, what = f'{file}, entry {number} of {kind}', entries.explain(error)
                raise UserError(f'{where}: {what}; correct it, or {entries.EXPORT}') from None
    if content.annotations and not reader.given:
        advice = f'use person_keypoints_*.json, or {entries.EXPORT}: {entries.CVAT}'
        raise UserError(f'{file} has no keypoints: {advice}')
    return reader.split(file)


def read_file(file):
    """All of a COCO file as a Split, parsed once per process. Raises UserError."""
    path = ref.find_path(file)
    try:
        return parse(file, path, path.stat().st_size, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f'no COCO annotations at {file} ({error.strerror}): edit ANNOTATIONS in '
            'data/coco_pose/ref.py, or pass --set data.annotations=... (person_keypoints_*.json)'
        ) from None
