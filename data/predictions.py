"""The people in a user's own photos, clips and cameras: drawn, and in predictions.json."""

import subprocess
import sys

import cv2

from data.coco_pose.results import draw_found, to_coco
from data.photos import Results, Stream, list_files, open_pictures
from utils.checkpoint import write_atomically
from utils.draw import draw_heatmaps, draw_tags
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
    category = {'id': 1, 'name': 'person', 'keypoints': joints.names}
    category['skeleton'] = [[a + 1, b + 1] for a, b in joints.skeleton]  # COCO counts from 1

    def write(stream):
        results = Results(out, stream, category)
        with Progress(len(files), 'photos', 'picture') as bar:
            for number, file in enumerate(files, 1):
                try:
                    pictures = open_pictures(file)
                    bar.total += max(pictures.count - 1, 0)
                    with results.begin(pictures.file, pictures.rate):
                        for taken, picture in enumerate(pictures):
                            sheets, frame = maps and not pictures.rate, taken + pictures.dropped
                            found = *find(picture), joints, sure
                            drawn = add_picture(results, picture, *found, sheets, frame)
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


def add_picture(results, picture, maps, people, scores, seen, joints, sure, sheets, frame):
    """Adds the people in a picture to Results, and returns the drawing.

    maps: as test.aggregate returns them. people (P, K, 3 + D), scores (P,), seen (P, K): see
    `draw_found`. sheets: whether to draw the maps as well. frame: see `Results.add`.
    """
    entries = to_coco(people, scores, results.images + 1, seen=seen)
    drawn, people, seen = draw_found(picture, people, scores, seen, joints, sure)
    pictures = {}
    if sheets:
        people[..., 2] *= seen
        det, tag, matrix = maps[0].cpu().numpy(), maps[1].cpu().numpy(), maps[2]
        pictures['heatmaps'] = draw_heatmaps(picture, det, joints.names, matrix)
        pictures['tags'] = draw_tags(picture, tag, people, joints.names, joints.skeleton, matrix)
    results.add(picture.shape[:2], entries, drawn, pictures, frame)
    return drawn
