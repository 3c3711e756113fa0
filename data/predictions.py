"""The people in a user's own photos and clips: a picture of each file, and predictions.json."""

import sys

from data.coco_pose.results import VISIBLE, to_coco
from data.photos import Results, list_files, open_pictures
from utils.checkpoint import write_atomically
from utils.draw import draw_heatmaps, draw_people, draw_tags
from utils.errors import UserError
from utils.progress import Progress


def write_predictions(find, paths, out, joints, maps=False):
    """Writes the people in files, or in folders of files, into the folder `out`.

    find: from a picture (H, W, 3) uint8 RGB to what `add_picture` takes. maps: also write sheets of
    heatmaps and tags of photos. Returns what could not be read, a line each; raises OSError where
    `out` cannot be written.
    """
    files, problems = list_files(paths, [out, out / 'heatmaps', out / 'tags'])
    for problem in problems:
        print(f'warning: {problem}', file=sys.stderr)

    def write(stream):
        results, further = Results(out, stream, describe_category(joints)), 0
        with Progress(len(files), 'photos', 'picture') as bar:
            for number, file in enumerate(files, 1):
                try:
                    pictures = open_pictures(file)
                    bar.total += max(pictures.count - 1, 0)
                    further += pictures.further
                    with results.begin(file, pictures.rate):
                        for picture in pictures:
                            sheets = maps and pictures.rate is None
                            add_picture(results, picture, *find(picture), joints, sheets)
                            bar.update()
                except UserError as error:
                    problems.append(str(error))
                    bar.write(f'warning: {error}', file=sys.stderr)
                bar.total = bar.done + len(files) - number
                bar.set_postfix(people=results.people)
        results.end()
        if further:
            print(f'note: {further} further pages or pictures of animated files are passed over')

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / 'predictions.json', write)
    return problems


def describe_category(joints):
    """The entry of `categories` that names the joints."""
    skeleton = [[a + 1, b + 1] for a, b in joints.skeleton]  # COCO counts from 1
    return {'id': 1, 'name': 'person', 'keypoints': joints.names, 'skeleton': skeleton}


def add_picture(results, picture, maps, people, seen, scores, joints, sheets):
    """Adds the people in a picture to Results.

    maps: as test.aggregate returns them. people and seen (P, K, 3 + D): with and without the joints
    that refine filled in. scores (P,). sheets: whether to draw the maps as well.
    """
    # What refine fills in was not seen, even if its value is high: it may be another's joint.
    entries = to_coco(people, scores, results.images + 1)
    for entry, without in zip(entries, to_coco(seen, scores, 0), strict=True):
        pairs = zip(entry['keypoints'][2::3], without['keypoints'][2::3], strict=True)
        entry['guessed'] = [k for k, (value, own) in enumerate(pairs) if value > 0 and own == 0]
    seen, scores = seen[scores > VISIBLE], scores[scores > VISIBLE]
    drawn = draw_people(picture, seen, joints.skeleton, scores)
    pictures = {}
    if sheets:
        det, tag, matrix = maps[0].cpu().numpy(), maps[1].cpu().numpy(), maps[2]
        pictures['heatmaps'] = draw_heatmaps(picture, det, joints.names, matrix)
        pictures['tags'] = draw_tags(picture, tag, seen, joints.names, joints.skeleton, matrix)
    results.add(picture.shape[:2], entries, drawn, pictures)
