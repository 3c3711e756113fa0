"""A user's own photos, clips and cameras: which files they are, and their pictures one by one.

All are upright, as viewers show them: the orientation that a phone stores beside the pixels is
applied to photos as well as to clips, so x and y are those of the picture that the user sees.
"""

import contextlib
import itertools
import math
import os
import queue
import re
import signal
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from data.coco_pose.photo import read_photo
from utils.errors import UserError
from utils.multiscale import as_rgb
from utils.regions import MOST_PIXELS

# The files that are taken from a folder, by their suffix. Not every OpenCV can read the last few
# kinds of photos, but users who have them want to know.
PHOTOS = set('.jpg .jpeg .jpe .jfif .png .bmp .webp .tif .tiff .ppm .pgm .avif .heic .heif'.split())
CLIPS = set('.mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .3gp .gif .ts .mts .m2ts'.split())
USUAL_RATE = 25.0  # pictures per second, where a clip does not state its rate
# How the first of the chunks that an mp4 or mov consists of may be called.
ISO_CHUNKS = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip')
TRIES, PAUSE = 10, 3.0  # how often a stream that broke off is opened again, and seconds before each
TIMEOUT = 5000  # milliseconds that an address is waited for


def list_files(paths, results=()):
    """The photos, clips and streams at `paths`, and what cannot be read, a line each.

    A file given by its own path is taken whatever its suffix is, one in a folder, or within those
    in it, by its suffix; the others are counted in a line, and hidden ones left alone. Each file
    comes once. What lies in the folders `results` is never an input.
    """
    results = {Path(folder).resolve() for folder in results}
    files, problems = {}, []
    for path in paths:
        if is_stream(path):
            files[path] = path
            continue
        path = Path(path)
        if not path.exists():
            problems.append(f'{path}: there is no such file or folder')
            continue
        found = [path]
        if path.is_dir():
            walked = [Path(p) / name for p, _, n in sorted(os.walk(path)) for name in sorted(n)]
            found = [file for file in walked if not file.name.startswith('.')]
        own = [file for file in found if file.parent.resolve() not in results]
        inputs = [f for f in own if f == path or f.suffix.lower() in PHOTOS | CLIPS]
        if others := set(own) - set(inputs):
            kinds = ', '.join(sorted({file.suffix or file.name for file in others}))
            print(f'note: {path}: {len(others)} other files are passed over ({kinds:.200})')
        if not inputs:
            where = ' but the results (choose another --out)' * (len(found) > len(own))
            problems.append(f'{path}: there is no photo and no clip{where}')
        for file in inputs:
            files.setdefault(file.resolve(), file)
    return list(files.values()), problems


def is_stream(path):
    """Whether an input is an address, or a camera's number that is no file."""
    return '://' in str(path) or str(path).isdecimal() and not Path(path).exists()


def open_pictures(path):
    """A Stream, Clip or Photo: by the form of the path and its suffix. Raises UserError."""
    if is_stream(path):
        return Stream(path)
    return Clip(path) if Path(path).suffix.lower() in CLIPS else Photo(path)


class Photo:
    """The pages of a photo, or the pictures of an animation: (H, W, 3) uint8 RGB one by one."""

    rate, dropped = None, 0

    def __init__(self, file):
        self.file, self.first, self.count = file, read_photo(file, upright=True), 1
        with contextlib.suppress(Exception), Image.open(file) as image:
            # What follows in a JPEG are previews, or how far away things are.
            self.count = getattr(image, 'n_frames', 1) if image.format != 'MPO' else 1

    def __iter__(self):
        yield self.first
        number = 0
        try:
            with Image.open(self.file) if self.count > 1 else contextlib.nullcontext() as image:
                for number in range(1, self.count):
                    image.seek(number)
                    if image.width * image.height > MOST_PIXELS:
                        raise ValueError
                    page = ImageOps.exif_transpose(image)
                    page = page if page.mode.startswith('I;16') else page.convert('RGB')
                    yield as_rgb(np.asarray(page))
        except Exception:  # of as many kinds as Pillow has readers
            problem = f'photo {self.file}: picture {number + 1} of {self.count} cannot be read'
            raise UserError(problem) from None


def rate_and_count(capture):
    """A capture's pictures per second, and how many it claims or seems to have, 0 if unknown."""
    rate, count = (capture.get(p) for p in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    rate = rate if 0 < rate <= 1000 else USUAL_RATE
    return rate, int(count) if 0 < count < math.inf else 0


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

    rate, count: see `rate_and_count`.
    """

    dropped = 0

    def __init__(self, file):
        self.file = file
        # OpenCV would take a name that is no file for an address, a camera or a pattern of names,
        # and what is before a colon at its start for a protocol.
        path = Path(file).absolute()
        self.capture = cv2.VideoCapture(str(path)) if path.is_file() else None
        if self.capture is None or not self.capture.isOpened():
            raise UserError(f'clip {file} cannot be read: it is broken, cut short, or no clip')
        self.rate, self.count = rate_and_count(self.capture)

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


class Stream:
    """A camera, by its number, or what plays at an address, until it ends or `stop` is called.

    Cameras and live streams do not wait: of the pictures that come while one is looked at, only the
    newest is kept, and `dropped` counts the others. A clip at an address, whose length is known,
    loses none. Raises UserError where it cannot be opened.
    """

    def __init__(self, source):
        # An address may hold a password.
        self.name = f'camera {source}' if source.isdecimal() else re.sub('//[^/]*@', '//', source)
        self.source, self.file, self.dropped = source, re.sub(r'\W+', '-', self.name), 0
        self.box, self.stopped = queue.Queue(1), threading.Event()
        self.capture = self.connect()
        if not self.capture.isOpened():
            raise UserError(
                f'{self.name} cannot be opened: expected the number of a camera that no other '
                'program uses, or the address of a stream or clip that plays elsewhere'
            )
        self.rate, self.count = rate_and_count(self.capture)

    def connect(self):
        """A VideoCapture of the source."""
        if self.source.isdecimal():
            return cv2.VideoCapture(int(self.source))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
        return cv2.VideoCapture(self.source, cv2.CAP_FFMPEG, limits)

    def stop(self, *_):
        """Ends the pictures with the one that is looked at; a second Ctrl-C ends all at once."""
        self.stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __iter__(self):
        """Its pictures (H, W, 3) uint8 RGB, followed by a UserError where it broke off."""
        thread = threading.Thread(target=self.run, daemon=True)
        before = signal.signal(signal.SIGINT, self.stop)
        try:
            thread.start()
            for taken in itertools.count():
                item = self.box.get()
                if self.stopped.is_set() or item is None:
                    return
                if isinstance(item, UserError):
                    raise item
                self.dropped = item[0] - taken
                yield cv2.cvtColor(item[1], cv2.COLOR_BGR2RGB)
        finally:
            self.stopped.set()
            while thread.is_alive():  # it may wait for room in the box
                with contextlib.suppress(queue.Empty):
                    self.box.get(timeout=0.1)
            self.capture.release()
            signal.signal(signal.SIGINT, before)
            if self.dropped:
                print(f'note: {self.name}: {self.dropped} pictures that came too fast are left out')

    def run(self):
        """Puts every (number, picture), from 0, into the box, and at last None or a UserError.

        What breaks off is opened again for a while. It runs in a thread of its own.
        """
        number = tries = 0
        end = None
        while not self.stopped.is_set() and end is None:
            picture = self.capture.read()[1]
            if picture is not None:
                if not self.count:
                    with contextlib.suppress(queue.Empty):
                        self.box.get_nowait()
                self.box.put((number, picture))
                number, tries = number + 1, 0
            elif 0 < self.count <= number or self.count and tries and self.capture.isOpened():
                break  # also where it is there again and has no more: the count may be a guess
            elif tries < TRIES:
                if tries == 0:
                    text = f'warning: {self.name} broke off after picture {number}, waiting'
                    print(text, file=sys.stderr, flush=True)
                tries += 1
                self.stopped.wait(PAUSE)
                self.capture = self.connect()
                for _ in range(number if self.count else 0):  # not every server lets one jump
                    self.capture.grab()
            else:
                end = UserError(
                    f'{self.name} broke off after picture {number}, and could not be opened again '
                    f'in {TRIES} tries within {TRIES * PAUSE:.0f} s'
                )
        self.box.put(end)
