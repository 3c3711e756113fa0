"""The people in a user's own photos, clips and cameras: drawn, and in predictions.json."""

import contextlib
import itertools
import json
import subprocess
import sys
from array import array
from pathlib import Path

import cv2
import numpy as np

from data.coco_pose import ref
from data.coco_pose.results import draw_found, to_coco
from data.photos import Stream, list_files, open_pictures
from utils.checkpoint import write_atomically
from utils.draw import draw_heatmaps, draw_tags, save_picture
from utils.errors import UserError
from utils.progress import Progress


def write_predictions(find, paths, out, joints, sure, maps=False, show=None):
    """Writes the people in files, in folders of files, or in streams, into the folder `out`.

    find: from a picture (H, W, 3) uint8 RGB to what `add_picture` takes. sure: see `draw_found`.
    maps: also write sheets of heatmaps and tags of photos. show: see `open_window`. Returns what
    could not be read, a line each; raises OSError where `out` cannot be written.
    """
    files, problems = list_files(paths, [out, out / 'heatmaps', out / 'tags'])
    for problem in problems:
        print(f'warning: {problem}', file=sys.stderr)

    def write(stream):
        results = Results(out, stream, ref.make_category(joints.names, joints.skeleton))
        with Progress(len(files), 'photos', 'picture') as bar:
            for number, file in enumerate(files, 1):
                try:
                    pictures = open_pictures(file)
                    bar.total += max(pictures.count - 1, 0)
                    with results.begin(pictures.file, pictures.rate):
                        for taken, picture in enumerate(pictures):
                            sheets, frame = maps and not pictures.rate, taken + pictures.dropped
                            found = *find(picture), joints, sheets, sure, frame
                            drawn = add_picture(results, picture, *found)
                            bar.update()
                            if show and not show(drawn):
                                pictures.stop()
                except UserError as error:
                    problems.append(str(error))
                    bar.write(f'warning: {error}', file=sys.stderr)
                bar.total = bar.done + len(files) - number
                bar.set_postfix(people=results.people)
        results.end()

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / 'predictions.json', write)
    print(f'{out}: the people found, as pictures and in predictions.json')
    if problems:
        print(f'{len(problems)} could not be read, see the warnings', file=sys.stderr)
    return problems


def watch(find, source, joints, sure, show):
    """Shows the people in a stream, see `write_predictions`, until it ends or `show` says so."""
    stream = Stream(source)
    for picture in stream:
        if not show(draw_found(picture, *find(picture)[1:], joints, sure)[0]):
            stream.stop()


def open_window(title):
    """A function that shows a picture and returns whether to go on; None where no screen is.

    q, Escape, or closing the window mean not to.
    """
    # Qt ends a process that finds no screen, hence a trial in another.
    trial = "import cv2; cv2.namedWindow('people'); cv2.waitKey(1)"
    if subprocess.run([sys.executable, '-c', trial], capture_output=True).returncode:
        return None
    cv2.namedWindow(title, cv2.WINDOW_GUI_NORMAL | cv2.WINDOW_AUTOSIZE)  # without a row of buttons

    def show(picture):
        cv2.imshow(title, picture[..., ::-1])
        key = cv2.waitKey(1) & 0xFF
        return key not in (27, ord('q')) and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) > 0

    return show


def add_picture(results, picture, maps, people, seen, scores, joints, sheets, sure=0.0, frame=0):
    """Adds the people in a picture to Results, and returns the drawing.

    maps: as test.aggregate returns them. people (P, K, 3 + D), seen (P, K), scores (P,), sure: see
    `draw_found`. sheets: whether to draw the maps as well. frame: see `Results.add`.
    """
    entries = to_coco(people, scores, results.images + 1, seen=seen)
    drawn, people, seen = draw_found(picture, people, seen, scores, joints, sure)
    pictures = {}
    if sheets:
        people[..., 2] *= seen
        det, tag, matrix = maps[0].cpu().numpy(), maps[1].cpu().numpy(), maps[2]
        pictures['heatmaps'] = draw_heatmaps(picture, det, joints.names, matrix)
        pictures['tags'] = draw_tags(picture, tag, people, joints.names, joints.skeleton, matrix)
    results.add(picture.shape[:2], entries, drawn, pictures, frame)
    return drawn


class ClipFile:
    """An mp4 of so many pictures per second. Raises OSError where it cannot be written."""

    def __init__(self, path, rate):
        self.path, self.rate, self.writer, self.count = path, rate, None, 0

    def write(self, picture, times=1):
        """Adds a picture (H, W, 3) uint8 RGB so many times; all get the size of the first."""
        # OpenCV would cut an odd size down to an even one, as mp4 wants it.
        edges = (0, picture.shape[0] % 2, 0, picture.shape[1] % 2)
        picture = cv2.copyMakeBorder(picture, *edges, cv2.BORDER_REPLICATE)
        if self.writer is None:
            code, self.size = cv2.VideoWriter_fourcc(*'mp4v'), picture.shape[1::-1]
            self.writer = cv2.VideoWriter(str(self.path.absolute()), code, self.rate, self.size)
            if not self.writer.isOpened():
                size = ' x '.join(map(str, self.size))
                raise OSError(f'{self.path} cannot be written as mp4 of {size}')
        if picture.shape[1::-1] != self.size:  # a camera that was opened again
            picture = cv2.resize(picture, self.size)
        for _ in range(times):
            self.count += 1
            self.writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self):
        """Ends the file. OpenCV does not report a full disk, so the clip is opened once more."""
        self.writer.release()
        capture = cv2.VideoCapture(str(self.path.absolute()))
        if capture.get(cv2.CAP_PROP_FRAME_COUNT) != self.count:
            raise OSError(f'{self.path} holds fewer pictures than were written: full disk?')


class Results:
    """The folder of the results: a picture for each file, and predictions.json as they come.

    predictions.json, whose open binary file is `stream`, is in the format of COCO; its annotations
    have a score, the third figure of a joint is its value, and `guessed` lists the joints (from 0)
    that were filled in. The pictures of a clip or stream, and the pages of a photo, are images of
    one file_name, numbered by `frame` from 0. Memory holds one entry per file, and frame numbers.
    """

    def __init__(self, folder, stream, category):
        self.folder, self.stream, self.names, self.files = folder, stream, set(), []
        self.images = self.people = 0
        self.put(f'{{"categories": [{json.dumps(category)}],\n"annotations": [')

    def put(self, text):
        self.stream.write(text.encode())

    @contextlib.contextmanager
    def begin(self, file, rate=None):
        """Within it the pictures of a file are added; rate: of a clip, pictures per second."""
        self.file, self.rate, self.clip = Path(file), rate, None
        try:
            yield
        finally:
            if self.clip:
                self.clip.close()

    def start_file(self, size, frame):
        """Names the file of a photo, of its page `frame`, or of the clip that begins: `path`."""
        stem = self.file.stem + f'_{frame + 1:04d}' * (frame > 0)
        names = itertools.chain([stem], (f'{stem}-{number}' for number in itertools.count(2)))
        # A and a count as one name, as they do on some disks.
        name = next(name for name in names if name.lower() not in self.names)
        self.names.add(name.lower())
        self.path = self.folder / (name + ('.mp4' if self.rate else '.jpg'))
        self.clip = ClipFile(self.path, self.rate) if self.rate else None
        image = {'file_name': self.file.as_posix(), 'drawn': self.path.name}
        image |= {'height': size[0], 'width': size[1]}
        self.files.append((image, array('q')))

    def add(self, size, people, drawn, sheets, frame=0):
        """Adds a picture of (height, width), its entries, as of COCO's results, and drawings.

        sheets: further drawings, by the folders that they go to. frame: the picture's number in its
        file. In a clip that lacks those before it, it also takes their time.
        """
        if not self.clip:
            self.start_file(size, frame)
        self.images += 1
        self.files[-1][1].append(frame)
        for person in people:
            self.people += 1
            entry = {'id': self.people} | person | outline(person['keypoints'])
            self.put(('\n' if self.people == 1 else ',\n') + json.dumps(entry))
        if self.clip:
            self.clip.write(drawn, frame + 1 - self.clip.count)
            return
        for kind, picture in ({'': drawn} | sheets).items():
            (self.folder / kind).mkdir(exist_ok=True)
            save_picture(self.folder / kind / self.path.name, picture)

    def end(self):
        """Completes predictions.json."""
        self.put('\n],\n"images": [')
        pictures = ((image, frame) for image, frames in self.files for frame in frames)
        for number, (image, frame) in enumerate(pictures, 1):
            entry = {'id': number} | image
            entry |= {'frame': frame} if frame or image['drawn'].endswith('.mp4') else {}
            self.put(('\n' if number == 1 else ',\n') + json.dumps(entry))
        self.put('\n]}\n')


def outline(keypoints):
    """What COCO's annotations hold beside a person's keypoints, from x, y, value of each joint."""
    joints = np.reshape(keypoints, (-1, 3))
    points = joints[joints[:, 2] > 0, :2]
    box = np.r_[points.min(0), np.ptp(points, 0)].tolist() if len(points) else [0.0] * 4
    area = round(box[2] * box[3], 3)
    box = [round(value, 3) for value in box]
    return {'num_keypoints': len(points), 'bbox': box, 'area': area, 'iscrowd': 0}
