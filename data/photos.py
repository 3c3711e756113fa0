"""A user's own photos and clips: which files they are, their pictures one by one, and the results.

All are upright, as viewers show them: the orientation that a phone stores beside the pixels is
applied to photos as well as to clips, so x and y are those of the picture that the user sees.
"""

import contextlib
import itertools
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.coco_pose.photo import read_photo
from utils.draw import save_picture
from utils.errors import UserError

# The files that are taken from a folder, by their suffix. Not every OpenCV can read the last few
# kinds of photos, but users who have them want to know.
PHOTOS = set('.jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .ppm .pgm .avif .heic .heif'.split())
CLIPS = '.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .3gp .gif .ts .mts .m2ts'
CLIPS = set(CLIPS.split())
USUAL_RATE = 25.0  # pictures per second, where a clip does not state its rate
# How the first of the chunks that an mp4 or mov consists of may be called.
ISO_CHUNKS = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip')


def list_files(paths, results=()):
    """The photos and clips at `paths`, files or folders with all that is in them, and problems.

    A file given by its own path is taken whatever its suffix is, one in a folder by its suffix, and
    the others are counted in a line; each file comes once. What lies in the folders `results` is
    never an input.
    """
    results = {Path(folder).resolve() for folder in results}
    files, problems = {}, []
    for path in map(Path, paths):
        found, others = walk(path) if path.is_dir() else ([path] if path.exists() else [], [])
        inputs = [file for file in found if file.parent.resolve() not in results]
        others = [
            file.suffix or file.name for file in others if file.parent.resolve() not in results
        ]
        if others:
            kinds = ', '.join(sorted(set(others)))
            print(f'note: {path}: {len(others)} other files are passed over ({kinds:.200})')
        if not path.exists():
            problems.append(f'{path}: there is no such file or folder')
        elif not inputs:
            where = ' but the results (choose another --out)' * (len(found) > 0)
            problems.append(f'{path}: there is no photo and no clip{where}')
        for file in inputs:
            files.setdefault(file.resolve(), file)
    return list(files.values()), problems


def walk(folder):
    """The photos and clips in a folder and those within it, and other files; no hidden ones."""
    files = [
        Path(parent) / name
        for parent, _, names in sorted(os.walk(folder))
        for name in sorted(names)
        if not name.startswith('.')
    ]
    inputs = [file for file in files if file.suffix.lower() in PHOTOS | CLIPS]
    return inputs, [file for file in files if file.suffix.lower() not in PHOTOS | CLIPS]


def open_pictures(file):
    """A Photo or a Clip, by the suffix of the file. Raises UserError."""
    return Clip(file) if Path(file).suffix.lower() in CLIPS else Photo(file)


class Photo:
    """A photo as a clip of one picture (H, W, 3) uint8 RGB; its rate is None.

    further: how many pages, or pictures of an animation, the file has after the first.
    """

    rate, count = None, 1

    def __init__(self, file):
        self.picture, self.further = read_photo(file, upright=True), 0
        with contextlib.suppress(Exception), Image.open(file) as image:
            self.further = getattr(image, 'n_frames', 1) - 1

    def __iter__(self):
        yield self.picture


def is_cut_short(file):
    """Whether a clip ends before what its own mp4, avi or mkv structure says that it holds."""
    end, place = Path(file).stat().st_size, 0
    with open(file, 'rb') as stream:
        while place < end:
            stream.seek(place)
            head = stream.read(16)
            if head[:4] in (b'\x1aE\xdf\xa3', b'\x18S\x80g'):  # Matroska's header and its body
                width = 9 - head[4].bit_length()
                size = int.from_bytes(head[4 : 4 + width]) - (1 << 7 * width)
                # All ones: it was written without knowing its end.
                size = 4 + width + size if size + 1 < 1 << 7 * width else 0
            elif head[:4] == b'RIFF':
                size = 8 + int.from_bytes(head[4:8], 'little')
            elif place > 0 or head[4:8] in ISO_CHUNKS:
                size = int.from_bytes(head[:4])
                size = int.from_bytes(head[8:16]) if size == 1 else size
            else:
                return False
            if size < 8:
                return False
            place += size
    return place > end


class Clip:
    """A clip, of which one picture at a time is in memory. Raises UserError if it cannot be read.

    rate: pictures per second. count: how many the file claims or seems to have, 0 if unknown.
    """

    further = 0

    def __init__(self, file):
        self.file = file
        # OpenCV would take a name that is no file for an address, a camera or a pattern of names,
        # and what is before a colon at its start for a protocol.
        path = Path(file).absolute()
        self.capture = cv2.VideoCapture(str(path)) if path.is_file() else None
        if self.capture is None or not self.capture.isOpened():
            raise UserError(f'clip {file} cannot be read: it is broken, cut short, or no clip')
        rate, count = (self.capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if 0 < rate <= 1000 else USUAL_RATE
        self.count = int(count) if 0 < count < math.inf else 0

    def __iter__(self):
        """Its pictures (H, W, 3) uint8 RGB, followed by a UserError where the clip is cut short."""
        number, code = 0, int(self.capture.get(cv2.CAP_PROP_FOURCC))
        try:
            while (picture := self.capture.read()[1]) is not None:
                number += 1
                yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        finally:
            self.capture.release()
        if number == 0:
            codec = (code & 0xFFFFFFFF).to_bytes(4, 'little').decode('ascii', 'replace')
            raise UserError(
                f'clip {self.file} has no pictures that can be read (codec {codec}): '
                f"convert it with 'ffmpeg -i {Path(self.file).name} -c:v libx264 new.mp4'"
            )
        # The count may be an estimate from length and rate, or include what was trimmed.
        if number < self.count and is_cut_short(self.file):
            raise UserError(f'clip {self.file} is cut short: it ends after picture {number}')


class PictureFile:
    """Where pictures are written: a JPEG, or with a rate an mp4 of so many pictures per second.

    Raises OSError where it cannot be written.
    """

    def __init__(self, path, rate=None):
        self.path, self.rate = path, rate
        self.writer, self.count = None, 0

    def write(self, picture):
        """Adds a picture (H, W, 3) uint8 RGB; those of a clip are of one size."""
        self.count += 1
        if self.rate is None:
            save_picture(self.path, picture)
            return
        height, width = picture.shape[:2]
        # OpenCV would cut an odd size down to an even one, as mp4 wants it.
        edges = (0, height % 2, 0, width % 2)
        picture = cv2.copyMakeBorder(picture, *edges, cv2.BORDER_REPLICATE)
        if self.writer is None:
            code, size = cv2.VideoWriter_fourcc(*'mp4v'), picture.shape[1::-1]
            self.writer = cv2.VideoWriter(str(self.path.absolute()), code, self.rate, size)
            if not self.writer.isOpened():
                raise OSError(f'{self.path} cannot be written as mp4 of {size[0]} x {size[1]}')
        self.writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self):
        """Ends the file. OpenCV does not report a full disk, so a clip is opened once more."""
        if self.writer is not None:
            self.writer.release()
            capture = cv2.VideoCapture(str(self.path.absolute()))
            written = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            if written != self.count:
                raise OSError(f'{self.path} holds fewer pictures than were written: full disk?')


class Results:
    """The folder of the results: a picture for each file, and predictions.json as they come.

    predictions.json, whose open binary file is `stream`, is in the format of COCO; its annotations
    have a score, the third figure of a joint is its value, and `guessed` lists the joints (from 0)
    that were filled in. A clip's pictures are images of one file_name, numbered by `frame` from 0.
    Memory holds one entry per file.
    """

    def __init__(self, folder, stream, category):
        self.folder, self.stream = folder, stream
        self.names, self.files = set(), []
        self.images = self.people = 0
        self.put(f'{{"categories": [{json.dumps(category)}],\n"annotations": [')

    def put(self, text):
        self.stream.write(text.encode())

    @contextlib.contextmanager
    def begin(self, file, rate=None):
        """Within it the pictures of a file are added; rate: of a clip, pictures per second."""
        stem = Path(file).stem
        names = itertools.chain([stem], (f'{stem}-{number}' for number in itertools.count(2)))
        # A and a count as one name, as they do on some disks.
        self.name = next(name for name in names if name.lower() not in self.names)
        self.names.add(self.name.lower())
        self.drawn = PictureFile(self.folder / (self.name + ('.mp4' if rate else '.jpg')), rate)
        image = {'file_name': Path(file).as_posix(), 'drawn': self.drawn.path.name}
        self.files.append({'image': image, 'first': self.images + 1, 'count': 0, 'rate': rate})
        try:
            yield
        finally:
            self.drawn.close()

    def add(self, size, people, drawn, sheets):
        """Adds a picture of (height, width), its entries, as of COCO's results, and drawings.

        sheets: further drawings, by the folders that they go to.
        """
        self.images += 1
        file = self.files[-1]
        file['count'] += 1
        file['image']['height'], file['image']['width'] = size
        for person in people:
            self.people += 1
            entry = {'id': self.people} | person | outline(person['keypoints'])
            self.put(('\n' if self.people == 1 else ',\n') + json.dumps(entry))
        self.drawn.write(drawn)
        for kind, sheet in sheets.items():
            (self.folder / kind).mkdir(exist_ok=True)
            save_picture(self.folder / kind / f'{self.name}.jpg', sheet)

    def end(self):
        """Completes predictions.json."""
        self.put('\n],\n"images": [')
        for file in self.files:
            for number in range(file['count']):
                image = {'id': file['first'] + number} | file['image']
                image |= {'frame': number} if file['rate'] else {}
                self.put(('\n' if image['id'] == 1 else ',\n') + json.dumps(image))
        self.put('\n]}\n')


def outline(keypoints):
    """What COCO's annotations hold beside a person's keypoints, from x, y, value of each joint."""
    joints = np.array(keypoints).reshape(-1, 3)
    points = joints[joints[:, 2] > 0, :2]
    points = points if len(points) else np.zeros((1, 2))
    box = np.r_[points.min(0), np.ptp(points, 0)].tolist()
    return {
        'num_keypoints': int((joints[:, 2] > 0).sum()),
        'bbox': [round(value, 3) for value in box],
        'area': round(box[2] * box[3], 3),
        'iscrowd': 0,
    }
