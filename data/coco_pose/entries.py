"""What a COCO file may say: its entries, checked while they are parsed, and other tools' files."""

import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from utils.errors import UserError
from utils.regions import FAR, Number, Region, Side

# A path that stays in its folder, and that the system can have: neither absolute nor with '..'.
INSIDE = re.compile(r'(?![/\\]|\w:|(.*[/\\])?\.\.([/\\]|$))[^\0\ud800-\udfff]+', re.DOTALL)
EXPORT = 'export the file again as COCO keypoints'
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# Files of other tools by how they begin, and how to get COCO keypoints from those tools.
CVAT = "in CVAT, draw skeletons and export 'COCO Keypoints 1.0'"
OTHER_TOOLS = (
    (rb'PK', 'a zip file', 'unpack it, and choose the JSON file of keypoints in it'),
    (rb'\s*<', 'XML, as of CVAT or Pascal VOC', CVAT),
    (rb'\s*\{.*"(shapes|imagePath)"', 'a file of labelme, of one photo',
     'labelme and labelme2coco write no COCO keypoints; ' + CVAT),
    (rb'\s*\[.*"(keypointlabels|completed_by|annotator)"', "Label Studio's own JSON",
     'give each of its KeyPointLabels a model_index, and export COCO; it takes all points of a '
     'photo for one person'),
    (rb'\s*\[.*"keypoints"', 'a list of detections, as of dt.json', 'choose the annotations'),
    (rb'\s*\{.*"_via_', 'a project of VIA', 'export the annotations as COCO; or ' + CVAT),
    (rb'\d+([ \t]+[-\d.e]+){4,}[ \t]*\r?$|.*^(kpt_shape|train|val|nc|names)\s*:', 'a file of YOLO',
     "in Roboflow, export 'COCO Keypoint'; " + CVAT),
)  # fmt: skip


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
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # Python's own reader is slow, but takes NaN (here as null) and a byte order mark.
            content = json.loads(data, parse_constant=lambda _: None)
            return decoder.decode(msgspec.json.encode(content))
    except (ValueError, RecursionError, OverflowError) as error:
        head = data[:10_000].removeprefix(b'\xef\xbb\xbf')
        for pattern, what, advice in OTHER_TOOLS:
            if re.match(pattern, head, re.DOTALL | re.MULTILINE):
                raise UserError(f'{file} is {what}, not COCO keypoints: {advice}') from None
        if not isinstance(error, msgspec.ValidationError):
            raise UserError(f'{file} cannot be read as JSON ({error}): download it again') from None
        raise UserError(f'{file} is not a COCO file of keypoints: {explain(error)}') from None
