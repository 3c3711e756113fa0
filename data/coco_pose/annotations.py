"""A COCO annotation file as flat arrays: a Split, the part of its photos that one phase uses."""

import contextlib
import functools
import json
import re
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw
from pycocotools import mask as rle_mask

from data.coco_pose import ref
from data.coco_pose.photo import read_photo
from utils import dist
from utils.errors import UserError
from utils.regions import FAR, Number, Region, Side, pack

LEAST_AREA = 32  # pixels; a smaller person has no joints that anybody could label
LARGE = 20_000_000  # bytes of a file whose reading is announced
# A path that stays in its folder, and that the system can have: neither absolute nor with '..'.
INSIDE = re.compile(r'(?![/\\]|\w:|(.*[/\\])?\.\.([/\\]|$))[^\0\ud800-\udfff]+', re.DOTALL)
EXPORT = 'export the file again as COCO keypoints'

Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


# The fields that are read, and what they must be. All others are skipped while a file is parsed.
class ImageEntry(msgspec.Struct, gc=False):
    id: Whole
    file_name: str
    height: Side | None = None
    width: Side | None = None
    drawn: str | None = None  # in a predictions.json of this program, whose photos are upright

    def __post_init__(self):
        self.file_name = self.file_name.replace('\\', '/')  # as Windows writes paths
        if not INSIDE.fullmatch(self.file_name):
            raise ValueError(f'file_name is {self.file_name!r:.80}: expected a path inside images')


class AnnotationEntry(msgspec.Struct, gc=False):
    image_id: Whole
    category_id: Whole | None = None
    keypoints: list[Number | None] | None = None  # of each joint x, y, and 0 if it is not labelled
    iscrowd: bool | float | None = False
    bbox: list[Number | None] | None = None  # x, y, width, height
    area: Annotated[float, Meta(ge=0, lt=FAR**2)] | None = None

    def __post_init__(self):
        joints = self.keypoints or []
        if None in joints:  # which other tools write for a joint without a label
            triples = zip(joints[::3], joints[1::3], joints[2::3], strict=False)
            if any(v and None in (x, y) for x, y, v in triples):
                raise ValueError('keypoints: expected numbers for a labelled joint, found null')
            self.keypoints = [value or 0 for value in joints]
        if not any(self.bbox or ()):
            self.bbox = None
        elif len(self.bbox) != 4 or None in self.bbox or min(self.bbox[2:]) < 0:
            raise ValueError(f'bbox: expected x, y, width, height, found {self.bbox}')
        if self.iscrowd not in (None, 0, 1):
            raise ValueError(f'iscrowd: expected 0 or 1, found {self.iscrowd}')


class RegionEntry(msgspec.Struct):
    segmentation: Region | None = None


class Category(msgspec.Struct):
    id: Whole | None = None
    name: Any = None
    keypoints: list[str] | None = None
    skeleton: list[tuple[int, int]] | None = None

    def __post_init__(self):
        names = self.keypoints or ()
        if names and (self.id is None or len(set(names)) < len(names) or '\n' in ''.join(names)):
            raise ValueError(f'expected an id, and different names as keypoints, found {names}')


class CocoFile(msgspec.Struct):
    images: list[Raw]
    annotations: list[Raw] | None = None
    categories: list[Category] | None = None

    def __post_init__(self):
        # Categories that name the same joints are one kind, and the first stands for all of them.
        kinds = {', '.join(c.keypoints): c.name for c in self.categories or () if c.keypoints}
        if len(kinds) > 1:
            found = '; '.join(f'{name} ({names})' for names, name in kinds.items())
            raise ValueError(f'expected categories and annotations of one kind, found {found}')


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
        self.category = msgspec.to_builtins(named[0]) if named else None
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
        if not self.category:
            number = 1 if entry.category_id is None else entry.category_id
            self.category = {'id': number, 'name': 'person', 'keypoints': None}
        keypoints, place = entry.keypoints, self.places.get(entry.image_id, -1)
        if keypoints:
            if not self.values:
                self.values = len(keypoints) // 3 * 3
                self.keypoints.frombytes(bytes(8 * self.values * len(self.raws)))
            labels = keypoints[2::3]
            if len(keypoints) != self.values:
                raise ValueError(f'expected {self.values} keypoint values, found {len(keypoints)}')
            if min(labels) < 0 or max(labels) > 2:
                raise ValueError(
                    'expected 0, 1 or 2 as the third of the keypoint values of a joint'
                )
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
            file=file,
            category=self.category or {'id': 1, 'name': 'person', 'keypoints': None},
            ids=np.array(list(self.places), np.int64),
            names=np.array(self.names, np.dtypes.StringDType()),
            sizes=np.array(self.sizes, np.int32).reshape(-1, 2),
            spans=np.stack([places[order].searchsorted(photos + end) for end in (0, 1)], 1),
            order=order,
            keypoints=keypoints,
            is_person=is_person,
            boxes=boxes,
            areas=areas,
            is_crowd=is_crowd,
            regions=self.regions,
            estimated=estimated,
            upright=self.upright,
        )


def measure(keypoints):
    """Width and height (P, 2) of the box of the labelled joints of people (P, K, 3)."""
    points, seen = keypoints[..., :2], keypoints[..., 2:] > 0
    return points.max(1, initial=-FAR, where=seen) - points.min(1, initial=FAR, where=seen)


def read_region(raw, size):
    """The segmentation of an entry as regions.pack gives it, or None. Raises ValueError."""
    region = msgspec.json.decode(raw, type=RegionEntry, strict=False).segmentation
    return pack(region, size) if region else None


def estimate_area(given, box, extent, raw, size):
    """The area in pixels of a person whose `given` one cannot be; 0 where nothing has an extent.

    extent: of the box of the joints. People of COCO cover 0.53 of their box, and no more than that
    of the box of their joints. Some people are truly small: an area that the others confirm stays.
    """
    boxes = [box[2] * box[3], extent]
    estimates = [0.53 * box for box in boxes]
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        region = read_region(raw, list(size))
        estimates[:0] = [float(rle_mask.area(region))] if region else []
    if given > max(boxes) / 100 and any(area / 2 <= given <= 2 * area for area in estimates):
        return given
    least = max(LEAST_AREA, extent / 100)
    return next((area for area in estimates if area > least), max(estimates))


def explain(error):
    """What a field must be, in words of a msgspec.DecodeError or ValueError."""
    text, _, field = str(error).replace('`', '').partition(' - at $.')
    return f'{field}: {text[0].lower()}{text[1:]}' if field else text


def load(file, data):
    """The content of a file, whose bytes are `data`, as a CocoFile. Raises UserError."""
    decoder = msgspec.json.Decoder(CocoFile, strict=False)
    try:
        try:
            return decoder.decode(data)
        except msgspec.DecodeError as error:
            if isinstance(error, msgspec.ValidationError):
                raise
            # Python's own reader is slow, but takes NaN (here as null) and a byte order mark.
            content = json.loads(data, parse_constant=lambda _: None)
            return decoder.decode(msgspec.json.encode(content))
    except msgspec.ValidationError as error:
        raise UserError(f'{file} is not a COCO file of keypoints: {explain(error)}') from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise UserError(f'{file} cannot be read as JSON ({error}): download it again') from None


@functools.lru_cache(4)
def parse(file, path, size, mtime):
    """See `read_file`. Entries are decoded one by one: memory holds little more than the arrays."""
    if size > LARGE and dist.rank() == 0:
        print(f'reading {file} ({size / 1e6:.0f} MB)', flush=True)
    content = load(file, path.read_bytes())
    reader = Reader(content.categories or [])
    for kind, struct, add in (
        ('images', ImageEntry, reader.add_image),
        ('annotations', AnnotationEntry, reader.add_annotation),
    ):
        decoder = msgspec.json.Decoder(struct, strict=False)
        for number, raw in enumerate(getattr(content, kind) or ()):
            try:
                add(decoder.decode(raw), raw)
            except (msgspec.DecodeError, ValueError) as error:
                where = f'{file}, entry {number} of {kind}'
                raise UserError(f'{where}: {explain(error)}; correct it, or {EXPORT}') from None
    if reader.table and not reader.given:
        raise UserError(f'{file} has no keypoints: use person_keypoints_*.json, or {EXPORT}')
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
