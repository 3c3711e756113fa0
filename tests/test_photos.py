"""A user's own photos and clips, the maps behind the people, and photos without labels."""

import contextlib
import copy
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import test
from data.coco_pose import ref
from data.coco_pose.annotations import read_file
from data.coco_pose.dp import GenerateHeatmap
from data.coco_pose.photo import read_photo
from data.coco_pose.results import coco_scores, draw_found
from data.coco_pose.splits import open_file, open_valid
from data.photos import Clip, list_files
from data.predictions import ClipFile
from task import pose
from utils import draw
from utils.affine import kpt_affine
from utils.errors import UserError
from utils.run import Run

NAMES, FLIP = ref.COCO.names, list(ref.COCO.flip)
K = len(NAMES)


class Painter:
    """A network that sees the same people in every photo of a size, at scale 1.

    people (P, K, 3) of x, y, v in the photo's pixels; person p has the tag 4 * p. values (P, K):
    the heights of their peaks.
    """

    def __init__(self, people, size, values=None, **settings):
        self.people, self.size = people, size
        self.values = np.ones(people.shape[:2]) if values is None else values
        self.config = copy.deepcopy(pose.__config__)
        self.config['test'].update(settings)

    def __call__(self, images):
        R = images[0].shape[0] // 4
        height, width = self.size
        zoom = R / max(height, width)
        shift = R / 2 - zoom * np.array([width / 2, height / 2])
        det, tag = np.zeros((2, K, R, R), np.float32)
        for p, person in enumerate(self.people):
            moved = person.copy()
            moved[:, :2] = moved[:, :2] * zoom + shift
            one = GenerateHeatmap(R, K)(moved[None])
            tag[one > 0.01] = 4 * p
            det = np.maximum(det, one * self.values[p][:, None, None])
        photo = np.concatenate([det, tag])
        mirrored = np.concatenate([det[FLIP], tag[FLIP]])[:, :, ::-1]
        passes = np.stack([photo, mirrored][: len(images)])
        return [torch.from_numpy(passes.astype(np.float32))[:, None]]


def two_people(width=320, height=240):
    """Two people (2, K, 3) beside each other."""
    rng = np.random.default_rng(0)
    people = np.full((2, K, 3), 2.0)
    people[0, :, :2] = rng.uniform((20, 30), (0.45 * width, height - 30), (K, 2))
    people[1, :, :2] = rng.uniform((0.55 * width, 30), (width - 20, height - 30), (K, 2))
    return people


def picture(height=48, width=64, seed=0):
    """A photo without sharp edges, so that formats with losses keep it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_clip(path, count=12, size=(48, 64), rate=10, code='MJPG'):
    """A clip of so many pictures, each brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, size[::-1])
    for number in range(count):
        writer.write(np.full((*size, 3), 40 + 10 * (number % 20), np.uint8))
    writer.release()
    return Path(path)


def pictures_of(path):
    """The pictures of a clip, and its rate."""
    clip = Clip(path)
    return list(clip), clip.rate


@pytest.fixture
def run1(configure, work):
    """exp/run1 with an untrained network that finds people in anything."""
    config = configure('test.max_num_people=4')
    network = pose.make_network(config).network
    with torch.no_grad():  # heatmaps about the threshold
        network.outs[0].conv.weight[:K] *= 5
        network.outs[0].conv.bias[:K] = torch.linspace(-0.1, 0.4, K)
    run = Run('run1')
    run.create(config | {'run': {'task': 'pose'}})
    run.save({'state_dict': network.state_dict()})
    return work


@pytest.fixture
def find(run1, call_script):
    """find(path, ...): test.py with these --images and options, results in out/."""
    return lambda *args: call_script('test.py', '-c', 'run1', '--out', 'out', '--images', *args)


def predictions(folder='out'):
    return json.loads((Path(folder) / 'predictions.json').read_text())


# --- which files ---


def test_photos_folders_clips_and_what_cannot_be_read(find):
    """Everything that can be read is there; everything else is named; the exit code is 1."""
    for name in ('album/one.jpg', 'album/deep/two.png', 'album/deep/one.jpg', 'single.bmp'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, picture())
    write_clip('album/clip.avi')
    Path('album/notes.txt').write_text('no photo')
    Path('album/.hidden.jpg').write_text('left alone')
    Path('album/broken.jpg').write_bytes(Path('album/one.jpg').read_bytes()[:-300])
    Path('album/none.png').write_text('<html>404</html>')
    Path('album/broken.mp4').write_bytes(b'\0' * 500)
    Path('empty').mkdir()
    done = find('album', 'single.bmp', 'gone.jpg', 'empty', 'album/one.jpg')
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith('warning: ')]
    for name in ('broken.jpg', 'none.png', 'broken.mp4', 'gone.jpg', 'empty'):
        assert sum(name in line for line in warnings) == 1
    assert len(warnings) == 5 and done.stderr.splitlines()[-1].startswith('5 could not be read')
    content = predictions()
    names = [image['file_name'] for image in content['images'] if 'frame' not in image]
    assert names == ['album/one.jpg', 'album/deep/one.jpg', 'album/deep/two.png', 'single.bmp']
    frames = [image['frame'] for image in content['images'] if 'frame' in image]
    assert frames == list(range(12))
    assert {path.name for path in Path('out').iterdir()} == {
        *('one.jpg', 'one-2.jpg', 'two.jpg', 'single.jpg', 'clip.mp4', 'predictions.json')
    }


def test_all_is_well(find):
    cv2.imwrite('a.jpg', picture())
    done = find('a.jpg')
    assert done.returncode == 0 and 'warning' not in done.stderr
    assert done.stdout.startswith('out: ')


def test_without_out_the_results_are_in_the_run(run1, call_script):
    cv2.imwrite('a.jpg', picture())
    assert call_script('test.py', '-c', 'run1', '--images', 'a.jpg').returncode == 0
    assert {p.name for p in (run1 / 'exp/run1/out').iterdir()} == {'a.jpg', 'predictions.json'}


def test_equal_names_do_not_overwrite_each_other(find):
    for number, name in enumerate(('x/a.jpg', 'y/a.jpg', 'z/A.png', 'x/a-2.jpg')):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, np.full((48, 64, 3), 50 * number + 50, np.uint8))
    assert find('x', 'y', 'z').returncode == 0
    images = predictions()['images']
    assert len({image['drawn'].lower() for image in images}) == 4
    for image in images:
        drawn = cv2.imread(f'out/{image["drawn"]}')
        own = cv2.imread(image['file_name'])
        assert abs(np.median(drawn) - np.median(own)) < 3


def test_results_are_neither_input_nor_written_over_inputs(find):
    """A second run over the same folder, and a folder of photos as --out."""
    cv2.imwrite('a.jpg', picture())
    for _ in range(2):
        assert find('.', '--maps').returncode == 0
        assert [image['file_name'] for image in predictions()['images']] == ['a.jpg']
    Path('out/b.jpg').write_bytes(Path('a.jpg').read_bytes())
    before = Path('out/b.jpg').read_bytes()
    done = find('out/b.jpg', 'out')
    assert done.returncode == 1 and done.stderr.count('choose another --out') == 2
    assert Path('out/b.jpg').read_bytes() == before


def test_a_named_file_is_taken_whatever_its_name(work):
    for name in ('a', 'b.jpeg', 'c.JPG', 'd.dat'):
        Path(name).touch()
    assert [path.name for path in list_files(['.'])[0]] == ['b.jpeg', 'c.JPG']
    files, problems = list_files(['d.dat', 'a', '.', './d.dat'])
    assert [path.name for path in files] == ['d.dat', 'a', 'b.jpeg', 'c.JPG'] and problems == []


def test_results_that_cannot_be_written(find):
    cv2.imwrite('a.jpg', picture())
    Path('out').write_text('a file')
    done = find('a.jpg')
    assert done.returncode == 1 and done.stderr.startswith('error: out')


@pytest.mark.parametrize('opened', [False, True])
def test_a_clip_that_cannot_be_written_is_an_error(find, monkeypatch, opened):
    """OpenCV's writer says nothing of a full disk."""

    class Full:
        def __init__(self, *args):
            pass

        def isOpened(self):
            return opened

        def write(self, picture):
            pass

        def release(self):
            Path('out/a.mp4').write_bytes(b'')

    write_clip('a.avi')
    monkeypatch.setattr(cv2, 'VideoWriter', Full)
    done = find('a.avi')
    assert done.returncode == 1 and 'the people found' not in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith('error: '))
    assert 'out/a.mp4' in line and 'Traceback' not in done.stderr


# --- upright ---


def with_orientation(path, number):
    """Puts an EXIF orientation into a JPEG."""
    tags = struct.pack('>HHHIHH', 1, 0x0112, 3, 1, number, 0) + bytes(4)
    block = b'Exif\0\0MM\0*' + struct.pack('>I', 8) + tags
    data = path.read_bytes()
    head = b'\xff\xe1' + struct.pack('>H', len(block) + 2) + block
    path.write_bytes(data[:2] + head + data[2:])


def test_a_photo_is_as_viewers_show_it(find):
    """Taken upright by a phone: stored lying, with the note to turn it to the right."""
    stored = picture(90, 160)
    cv2.imwrite('phone.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, 98])
    with_orientation(Path('phone.jpg'), 6)
    assert find('phone.jpg').returncode == 0
    (image,) = predictions()['images']
    assert (image['width'], image['height']) == (90, 160)
    upright = read_photo('phone.jpg', upright=True)
    assert np.abs(upright - cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE)[..., ::-1]
                  .astype(float)).mean() < 3  # fmt: skip
    assert cv2.imread('out/phone.jpg').shape == (640, 360, 3)
    assert read_photo('phone.jpg').shape == (90, 160, 3)  # COCO's annotations are of these


def test_a_clip_is_as_viewers_show_it(find):
    write_clip('phone.mp4', size=(48, 96), code='mp4v')
    data = Path('phone.mp4').read_bytes()
    header = data.index(b'tkhd')  # of the track, with a matrix that turns nothing
    matrix = data.index(struct.pack('>9i', 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), header)
    turned = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    Path('phone.mp4').write_bytes(data[:matrix] + turned + data[matrix + 36 :])
    assert find('phone.mp4').returncode == 0
    assert {(i['width'], i['height']) for i in predictions()['images']} == {(48, 96)}
    assert pictures_of('out/phone.mp4')[0][0].shape == (640, 320, 3)


def test_what_a_phone_appends_to_a_photo_is_ignored(work):
    """A short clip behind the photo, in whose bytes any marker may occur."""
    cv2.imwrite('a.jpg', picture())
    data = Path('a.jpg').read_bytes()
    Path('a.jpg').write_bytes(data + b'\xff\xd9' * 9 + b'\xff\xda' * 9)
    assert read_photo('a.jpg').shape == (48, 64, 3)
    for kept in range(2, len(data), 7):
        Path('a.jpg').write_bytes(data[:kept])
        with pytest.raises(UserError, match='a.jpg is cut short'):
            read_photo('a.jpg')


@pytest.mark.parametrize('option', [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
                                    (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])  # fmt: skip
def test_every_kind_of_jpeg_has_an_end(option, work):
    data = cv2.imencode('.jpg', picture(), option)[1].tobytes()
    Path('a.jpg').write_bytes(data)
    np.testing.assert_array_equal(read_photo('a.jpg'), cv2.imread('a.jpg')[..., ::-1])
    Path('a.jpg').write_bytes(data[:-2])
    with pytest.raises(UserError, match='a.jpg is cut short'):
        read_photo('a.jpg')


# --- clips ---


@pytest.mark.parametrize('size, code, name', [((48, 64), 'mp4v', 'a.mp4'),
                                              ((75, 101), 'MJPG', 'a.avi')])  # fmt: skip
def test_a_clip_is_drawn_picture_by_picture(find, size, code, name):
    """As many pictures, in order, at the same rate, enlarged; an odd size becomes even."""
    write_clip(name, size=size, code=code, rate=12)
    read = pictures_of(name)[0]
    assert find(name).returncode == 0
    drawn, rate = pictures_of('out/a.mp4')
    assert len(drawn) == len(read) == 12 and rate == pytest.approx(12)
    height = round(640 * read[0].shape[0] / read[0].shape[1])
    assert drawn[0].shape == (height + height % 2, 640, 3)
    medians = [np.median(one) for one in drawn]
    assert np.abs(np.array(medians) - np.arange(40, 160, 10)).max() < 8


def test_pictures_of_odd_size_are_kept_whole(work):
    """The padded edge is a repetition, and nothing is cut off."""
    file = ClipFile(Path('a.mp4'), 10)
    shown = picture(75, 101)
    for _ in range(3):
        file.write(shown)
    file.close()
    (first, *_), _ = pictures_of('a.mp4')
    assert first.shape == (76, 102, 3)
    assert np.abs(first[:75, :101].astype(float) - shown).mean() < 6


@pytest.mark.parametrize('name, count', [
    ('vfr.mkv', 40),  # variable rate: its header's count is a guess, 127
    ('sound.mkv', 40),  # the sound is three times as long as the pictures
    ('trim.mp4', 27),  # without the first 13 of 40, which are still in the file
])  # fmt: skip
def test_whole_clips_are_not_cut_short(find, root, name, count):
    shutil.copy(root / 'tests/clips' / name, name)
    assert len(pictures_of(name)[0]) == count
    done = find(name)
    assert done.returncode == 0 and 'cut short' not in done.stderr
    assert len(predictions()['images']) == count


def cut_mp4(work):
    """An mp4 whose index, at its start, goes on behind the end of the file."""
    data = write_clip('whole.mp4', count=20, size=(240, 320), code='mp4v').read_bytes()
    moov = data.index(b'moov') - 4
    index, middle = bytearray(data[moov:]), data.index(b'mdat') - 4
    place = index.index(b'stco') + 12
    start = struct.unpack('>I', index[place : place + 4])[0]
    index[place : place + 4] = struct.pack('>I', start + len(index))
    whole = data[:middle] + bytes(index) + data[middle:moov]
    Path('moved.mp4').write_bytes(whole)
    return whole[: len(whole) // 2]


def test_an_mp4_cut_short_is_known_by_its_index(find, work):
    Path('cut.mp4').write_bytes(cut_mp4(work))
    assert len(pictures_of('moved.mp4')[0]) == 20
    done = find('cut.mp4')
    assert done.returncode == 1 and 'clip cut.mp4 is cut short' in done.stderr


def test_a_codec_that_cannot_be_read_is_named(find, root):
    shutil.copy(root / 'tests/clips/av1.mp4', 'a.mp4')
    done = find('a.mp4')
    if done.returncode:  # some builds of OpenCV can
        assert '(codec AV01)' in done.stderr and "'ffmpeg -i a.mp4 -c:v libx264" in done.stderr


@pytest.mark.skipif(os.name == 'nt', reason='there are no such names')
def test_a_colon_in_a_name_is_no_protocol(find):
    write_clip('a.mp4', code='mp4v').rename('data:1.mp4')
    assert find('data:1.mp4').returncode == 0
    assert len(pictures_of('out/data:1.mp4')[0]) == 12


def test_what_a_folder_holds_besides_is_counted(find):
    Path('in').mkdir()
    for made, name in (('a.jpg', 'a.jfif'), ('a.jpg', 'b.jpe'), ('a.ppm', 'a.ppm')):
        cv2.imwrite(made, picture())
        Path(made).rename(f'in/{name}')
    write_clip('b.mpg', rate=25, code='PIM1').rename('in/c.MTS')
    for name in ('notes.txt', 'more.txt', 'a.psd', '.hidden'):
        Path('in', name).write_text('-')
    done = find('in')
    assert done.returncode == 0, done.stderr
    assert 'note: in: 3 other files are passed over (.psd, .txt)' in done.stdout
    names = {i['file_name'] for i in predictions()['images']}
    assert names == {'in/a.jfif', 'in/b.jpe', 'in/a.ppm', 'in/c.MTS'}


def test_every_page_and_picture_of_an_animation_is_read(find):
    """Under names of their own; a broken one is named, and what comes before it is kept."""
    shades = (40, 120, 200)
    pages = [Image.new('RGB', (64 + shade, 48), (shade,) * 3) for shade in shades]
    deep = [Image.fromarray(np.full((48, 64), 256 * shade, np.uint16)) for shade in shades]
    moves = [Image.new('RGB', (64, 48), (shade,) * 3) for shade in shades]
    for name, made in (('pages.tif', pages), ('deep.tif', deep), ('moves.webp', moves)):
        made[0].save(name, save_all=True, append_images=made[1:])
    preview = Image.new('RGB', (64, 48))
    preview.save('phone.jpg', 'MPO', save_all=True, append_images=[preview])
    data = Path('pages.tif').read_bytes()
    Path('pages_0002.tif').write_bytes(data)
    Path('cut.tif').write_bytes(data[: 9 * len(data) // 10])
    done = find('pages.tif', 'deep.tif', 'moves.webp', 'phone.jpg', 'pages_0002.tif', 'cut.tif')
    assert done.returncode == 1 and done.stderr.count('warning: ') == 1
    assert 'photo cut.tif: picture 3 of 3 cannot be read' in done.stderr
    images, names = predictions()['images'], ['', '_0002', '_0003']
    assert [(i['drawn'], i.get('frame')) for i in images] == [
        *(('pages.jpg', None), ('pages_0002.jpg', 1), ('pages_0003.jpg', 2)),
        *((f'deep{name}.jpg', number or None) for number, name in enumerate(names)),
        *((f'moves{name}.jpg', number or None) for number, name in enumerate(names)),
        ('phone.jpg', None),
        *(('pages_0002-2.jpg', None), ('pages_0002_0002.jpg', 1), ('pages_0002_0003.jpg', 2)),
        ('cut.jpg', None), ('cut_0002.jpg', 1),
    ]  # fmt: skip
    for image, shade in zip(images[:9], shades * 3, strict=True):
        assert abs(np.median(cv2.imread(f'out/{image["drawn"]}')) - shade) < 3
    assert [image['width'] for image in images[:3]] == [64 + shade for shade in shades]


@pytest.mark.parametrize('name', ['cut.mkv', 'cut.avi'])
def test_of_a_clip_cut_short_the_rest_is_kept(find, name):
    data = write_clip(f'whole{name[3:]}', count=20, size=(240, 320)).read_bytes()
    Path(name).write_bytes(data[: len(data) // 2])
    cv2.imwrite('a.jpg', picture())
    done = find(name, 'a.jpg')
    assert done.returncode == 1 and f'clip {name} is cut short' in done.stderr
    *clip, photo = predictions()['images']
    assert 2 < len(clip) < 18 and photo['file_name'] == 'a.jpg'
    assert len(pictures_of('out/cut.mp4')[0]) == len(clip)


@pytest.mark.parametrize('name, code', [('a.mp4', 'mp4v'), ('a.avi', 'MJPG')])
def test_a_clip_without_pictures(find, name, code):
    write_clip(name, count=0, code=code)
    done = find(name)
    assert done.returncode == 1 and f'warning: clip {name} ' in done.stderr
    assert predictions()['images'] == predictions()['annotations'] == []
    assert {path.name for path in Path('out').iterdir()} == {'predictions.json'}


@pytest.mark.parametrize('scale, rate', [(0, 0), (1, 0), (1, 5000)])
def test_a_clip_without_a_usable_rate(work, scale, rate):
    data = bytearray(write_clip('a.avi').read_bytes())
    header, stream = data.index(b'avih') + 8, data.index(b'strh') + 28
    data[header : header + 4] = bytes(4)  # of a picture, in microseconds
    data[stream : stream + 8] = struct.pack('<II', scale, rate)
    Path('a.avi').write_bytes(data)
    pictures, found = pictures_of('a.avi')
    assert len(pictures) == 12 and found == 25


def test_a_long_clip_takes_no_more_memory_than_a_short_one(work):
    """150 pictures of 1 MB: what is resident after the first twenty stays nearly as it was."""
    statm = Path('/proc/self/statm')
    if not statm.exists():
        pytest.skip('needs /proc to tell how much memory is resident')
    write_clip('long.avi', count=150, size=(480, 720))
    resident = []

    class Watcher(Painter):
        def __call__(self, images):
            resident.append(int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE'))
            return super().__call__(images)

    func = Watcher(two_people(720, 480)[:1], (480, 720), mirror=False)
    func.config['train']['input_res'] = 64
    assert test.find_in_files(func, ['long.avi'], Path('out'), [1.0]) == []
    assert len(resident) == 150
    assert max(resident[20:]) - resident[20] < 40e6
    assert len(pictures_of('out/long.mp4')[0]) == 150


# --- what is found ---


@pytest.fixture
def painted(work):
    """A photo of two people: one lacks two joints, of which refine can guess one."""
    people = two_people()
    people[0, [9, 16], 2] = 0
    values = np.where(np.arange(K) == 4, 0.6, 0.9)[None].repeat(2, 0)
    cv2.imwrite('a.png', np.full((240, 320, 3), 60, np.uint8))
    return people, Painter(people, (240, 320), values)


def test_predictions_are_in_the_format_of_coco(painted):
    people, func = painted
    assert test.find_in_files(func, ['a.png'], Path('out'), [1.0]) == []
    content = predictions()
    assert content['images'] == [
        {'id': 1, 'file_name': 'a.png', 'drawn': 'a.jpg', 'height': 240, 'width': 320}
    ]
    (category,) = content['categories']
    assert category['name'] == 'person' and tuple(category['keypoints']) == NAMES
    assert [(a - 1, b - 1) for a, b in category['skeleton']] == list(ref.COCO.skeleton)
    assert len(content['annotations']) == 2
    whole, part = content['annotations']  # the better one first
    assert whole['score'] == pytest.approx((16 * 0.9 + 0.6) / K, abs=0.01)
    assert part['score'] == pytest.approx((14 * 0.9 + 0.6) / K, abs=0.01)
    assert whole['guessed'] == [] and part['guessed'] == [9, 16]
    for entry, person in ((whole, people[1]), (part, people[0])):
        joints = np.array(entry['keypoints']).reshape(K, 3)
        there = person[:, 2] > 0
        assert np.abs(joints[there, :2] - person[there, :2]).max() < 2.5  # output pixels
        assert joints[4, 2] == pytest.approx(0.6, abs=0.01)
        assert joints[5, 2] == pytest.approx(0.9, abs=0.01)
    points = np.array(whole['keypoints']).reshape(K, 3)[:, :2]
    size = np.ptp(points, 0)
    assert whole['bbox'] == pytest.approx([*points.min(0), *size], abs=0.01)
    assert whole['area'] == pytest.approx(size.prod(), rel=1e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO('out/predictions.json')
        found = truth.loadRes(content['annotations'])
    assert len(truth.anns) == len(found.anns) == 2 and truth.getImgIds() == [1]
    assert len(read_file('out/predictions.json').keypoints) == 2


def test_predictions_can_be_evaluated_as_truth(painted, configure, make_coco):
    """What is found in a photo scores 1 against itself read as a COCO file."""
    _, func = painted
    test.find_in_files(func, ['a.png'], Path('out'), [1.0])
    split = open_file('out/predictions.json', '.', ref.COCO)
    keys = ('image_id', 'category_id', 'keypoints', 'score')
    detections = [{key: a[key] for key in keys} for a in predictions()['annotations']]
    figures, *_ = coco_scores(split, detections)
    assert figures['AP'] == pytest.approx(1)


def test_what_was_guessed_is_hollow_or_left_out(painted):
    """Hollow where its value exceeds test.detection_val: here it is another person's joint."""
    people, func = painted
    photo = read_photo('a.png')
    found, seen, scores = test.group_seen(*test.aggregate(photo, func, [1.0]), func.config['test'])
    part = int((~seen).any(1).nonzero()[0][0])
    assert not seen[part, [9, 16]].any() and seen.sum() == 2 * K - 2
    found[part, 9, 2], found[part, 16, 2] = 0.9, 0.09
    drawn, shown, _ = draw_found(photo, found, seen, scores, ref.COCO, 0.1)
    assert shown[part, 9, 2] > 0 and shown[part, 16, 2] == 0
    alone = found.copy()
    alone[part, [9, 16], 2] = 0
    without = draw.draw_people(photo, alone, ref.COCO.skeleton, scores)
    rows, places = (drawn != without).any(2).nonzero()
    x, y = 2 * found[part, 9, :2]  # 640 pixels wide
    assert 0 < np.hypot(places - x, rows - y).max() < 9  # a ring, and no limb
    test.find_in_files(func, ['a.png'], Path('out'), [1.0])
    assert predictions()['annotations'][1]['guessed'] == [9, 16]


def test_an_image_id_belongs_to_one_picture(find):
    write_clip('a.avi', count=4)
    cv2.imwrite('b.png', picture())
    find('a.avi', 'b.png')
    content = predictions()
    assert [image['id'] for image in content['images']] == [1, 2, 3, 4, 5]
    assert [a['id'] for a in content['annotations']] == list(
        range(1, len(content['annotations']) + 1)
    )
    assert {a['image_id'] for a in content['annotations']} <= {1, 2, 3, 4, 5}
    assert content['annotations']


def test_own_joints_go_through_all_of_it(configure, work, call_script):
    """Five joints: their names and limbs in predictions.json, and a sheet of each."""
    names = ['head', 'left_hand', 'right_hand', 'left_foot', 'right_foot']
    config = configure(f'data.joints={names}', 'data.skeleton=[[0,1],[0,2]]', 'model.oup_dim=10')
    run = Run('five')
    run.create(config | {'run': {'task': 'pose'}})
    network = pose.make_network(config).network
    with torch.no_grad():
        network.outs[0].conv.bias[: len(names)] = 0.3
    run.save({'state_dict': network.state_dict()})
    cv2.imwrite('a.jpg', picture())
    done = call_script('test.py', '-c', 'five', '--images', 'a.jpg', '--out', 'out', '--maps')
    assert done.returncode == 0, done.stderr
    content = predictions()
    assert content['categories'][0]['keypoints'] == names
    assert content['categories'][0]['skeleton'] == [[1, 2], [1, 3]]
    assert content['annotations']
    assert all(len(a['keypoints']) == 15 for a in content['annotations'])
    assert {path.parent.name for path in Path('out').glob('*/a.jpg')} == {'heatmaps', 'tags'}


# --- raw maps ---


@pytest.mark.parametrize('size', [(240, 320), (320, 240), (200, 200)])
@pytest.mark.parametrize('scales', [[1.0], [2.0, 1.0, 0.5]])
def test_the_transform_of_maps_leads_to_the_photo(size, scales):
    """The highest pixel of every joint, moved by it, is the joint that was drawn."""
    height, width = size
    people = two_people(width, height)[:1]
    func = Painter(people, size)
    det, tag, matrix = test.aggregate(np.zeros((*size, 3), np.uint8), func, scales)
    R = int(128 * scales[0])
    assert det.shape == (K, R, R) and tag.shape == (K, R, R, 2) and matrix.shape == (2, 3)
    best = det.flatten(1).argmax(1).numpy()
    peaks = np.stack([best % R, best // R], 1) + 0.5
    gap = np.abs(peaks - kpt_affine(people[0, :, :2], np.linalg.inv(
        np.vstack([matrix, [0, 0, 1]]))[:2])).max()  # fmt: skip
    assert gap <= 1 if len(scales) == 1 else gap <= 2  # output pixels
    points = kpt_affine(peaks, matrix)
    assert np.abs(points - people[0, :, :2]).max() <= max(size) / 128


def test_people_are_the_maps_grouped():
    func = Painter(two_people(), (240, 320))
    photo = np.zeros((240, 320, 3), np.uint8)
    people, scores = test.multiperson(photo, func)
    again, same = test.group(*test.aggregate(photo, func, [1.0]), func.config['test'])
    np.testing.assert_array_equal(people, again)
    np.testing.assert_array_equal(scores, same)
    assert len(people) == 2


def test_maps_of_a_network_that_has_diverged_are_empty():
    func = Painter(two_people(), (240, 320), np.full((2, K), 1e6))
    det, tag, _ = test.aggregate(np.zeros((240, 320, 3), np.uint8), func, [1.0])
    assert det.shape == (K, 128, 128) and not det.any() and tag.shape == (K, 128, 128, 2)


def test_sheets_are_written_for_photos(painted, call_script):
    """And none for clips."""
    _, func = painted
    write_clip('b.avi', count=2, size=(240, 320))
    test.find_in_files(func, ['a.png', 'b.avi'], Path('out'), [1.0], maps=True)
    for kind in ('heatmaps', 'tags'):
        (path,) = (Path('out') / kind).iterdir()
        assert path.name == 'a.jpg' and min(cv2.imread(str(path)).shape[:2]) > 600


@pytest.mark.filterwarnings('error')  # of infinite values among others
@pytest.mark.parametrize('matrix', [None, np.array([[8.0, 0, -40], [0, 8, 0]])])
def test_a_heatmap_is_drawn_where_it_is_in_the_photo(matrix):
    """Where the grey photo has colour, within a pixel of the map."""
    height, width = 300, 200
    det = np.zeros((3, 30, 20) if matrix is None else (3, 40, 40), np.float32)
    det[1, 12, 14] = 0.8
    det[:, :3, :9] = -np.inf  # as beyond the photo with test.margins off
    sheet = draw.draw_heatmaps(np.full((height, width, 3), 99, np.uint8), det, 'abc', matrix)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    colour = sheet.max(2).astype(int) - sheet.min(2)
    rows, places = (colour > 60).nonzero()  # cells are 200 x 300: all joints, a, b and below c
    cells = {(y // (draw.TITLE + 300), x // 200) for y, x in zip(rows, places, strict=True)}
    assert cells == {(0, 0), (0, 2)}
    in_first = (rows < draw.TITLE + 300) & (places < 200)
    point = np.array([places[in_first].mean(), rows[in_first].mean() - draw.TITLE]) + 0.5
    wanted = (145, 125) if matrix is None else (14.5 * 8 - 40, 12.5 * 8)
    assert np.abs(point - wanted).max() < 3


def test_a_chart_shows_each_tag_in_its_persons_colour():
    values = np.array([[0.9, 0.8, 0.0], [0.7, 0.0, 0.6]])
    tags = np.array([[0.0, 1.0, 7.0], [4.0, 7.0, 3.0]])
    chart = draw.draw_chart(values, tags, ('a', 'b', 'c'), (-1, 5), 'tag', (640, 520))
    dots = {}
    for number in range(2):
        own = (chart == draw.person_colour(number)).all(2)
        own[:, (own.sum(0) > 60)] = False  # the line of the mean
        count, _, stats, middles = cv2.connectedComponentsWithStats(own.astype(np.uint8))
        big = [middles[i] for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 15]
        dots[number] = sorted(big, key=lambda point: point[1])
    assert len(dots[0]) == len(dots[1]) == 2  # a joint not found has no dot
    x_of = lambda tag: 130 + (tag + 1) / 6 * (500 - 130)  # noqa: E731
    assert [p[0] for p in dots[0]] == pytest.approx([x_of(0), x_of(1)], abs=2)
    assert [p[0] for p in dots[1]] == pytest.approx([x_of(4), x_of(3)], abs=2)
    assert dots[0][0][1] == pytest.approx(dots[1][0][1], abs=1)  # both of joint a
    assert dots[0][0][1] < dots[0][1][1] < dots[1][1][1]


@pytest.mark.parametrize(
    'low, high, texts',
    [(-1, 5, ['-1', '0', '1', '2', '3', '4', '5']), (0.1, 0.4, ['0.10', '0.15', '0.20']),
     (-2300, 900, ['-2000', '-1000', '0'])],
)  # fmt: skip
def test_ticks_are_round(low, high, texts):
    ticks = draw.axis_ticks(low, high)
    assert [text for _, text in ticks][: len(texts)] == texts
    assert all(low <= number <= high for number, _ in ticks) and 3 <= len(ticks) <= 9


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('people', [0, 1])
@pytest.mark.parametrize('tag', [0.0, 1e6])
def test_sheets_of_odd_maps(people, tag):
    """Nobody there, all tags equal, a thin photo, one pass."""
    maps = np.full((K, 16, 16, 1), tag, np.float32)
    found = np.full((people, K, 4), tag, np.float32)
    found[..., :3] = 5, 5, 0.5
    photo = np.zeros((200, 9, 3), np.uint8)
    sheet = draw.draw_tags(photo, maps, found, NAMES, ref.COCO.skeleton)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    det = np.full((K, 16, 16), -np.inf, np.float32)  # as beyond the photo with test.margins off
    assert draw.draw_heatmaps(photo, det, NAMES).dtype == np.uint8


# --- from another folder ---


def test_runs_of_the_repository_are_found_from_any_folder(find, tmp_path, monkeypatch):
    """Those of the working folder come first; training goes on looking there alone."""
    cv2.imwrite('a.png', picture())
    photo = read_photo('a.png')
    wanted, _ = test.multiperson(photo, test.load('run1'))
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # `find` has made the folder before the repository's
    people, _ = test.multiperson(photo, test.load('run1'))
    np.testing.assert_array_equal(people, wanted)
    with pytest.raises(UserError, match='run1'):  # named among those that there are
        test.load('run2')
    assert not Run('run1').checkpoint().exists()
    (elsewhere / 'exp' / 'run1').mkdir(parents=True)
    with pytest.raises(UserError):
        test.load('run1')


def test_the_command_from_another_folder(find, root, tmp_path):
    """A copy of the repository with a run in it, called from a folder beside it."""
    repository, elsewhere = tmp_path / 'repository', tmp_path / 'elsewhere'
    for room in ('data', 'models', 'task', 'utils'):
        shutil.copytree(root / room, repository / room,
                        ignore=shutil.ignore_patterns('cache', 'coco', '__pycache__'))  # fmt: skip
    shutil.copy(root / 'test.py', repository)
    shutil.copytree('exp', repository / 'exp')
    elsewhere.mkdir()
    cv2.imwrite(str(elsewhere / 'a.jpg'), picture())
    command = [sys.executable, repository / 'test.py', '-c', 'run1', '--images', 'a.jpg']
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(predictions(repository / 'exp' / 'run1' / 'out')['images']) == 1
    assert [path.name for path in elsewhere.iterdir()] == ['a.jpg']


def test_data_of_the_repository_are_found_from_any_folder(make_coco, tmp_path, monkeypatch):
    coco = make_coco()
    monkeypatch.setattr(ref, 'REPOSITORY', tmp_path)
    monkeypatch.setattr(ref, 'IMAGES', str(coco.images.relative_to(tmp_path)))
    monkeypatch.setattr(ref, 'ANNOTATIONS', str(coco.annotations.relative_to(tmp_path)))
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    split = open_valid(pose.__config__['data'])
    assert split.ids.tolist() == coco.valid_ids and split.path(0).is_file()


# --- photos without labels ---


@pytest.fixture
def unlabelled(make_coco):
    """unlabelled(kind): an image_info file as COCO publishes it, and its photos' folder."""

    def make(kind='none'):
        coco = make_coco(people=(1, 2), valid=(1,), split='test2017')
        content = {key: coco.content[key] for key in ('images', 'categories')}
        content['categories'] = [{'id': 1, 'name': 'person'}, {'id': 2, 'name': 'bicycle'}]
        if kind == 'empty':
            content['annotations'] = []
        file = coco.annotations.with_name('image_info_test-dev2017.json')
        file.write_text(json.dumps(content))
        return file, coco.images / 'test2017', coco

    return make


@pytest.mark.parametrize('kind', ['none', 'empty'])
def test_a_submission(unlabelled, run1, call_script, kind):
    file, images, coco = unlabelled(kind)
    done = call_script('test.py', '-c', 'run1', '-m', 'multi', '--annotations', file,
                       '--images', images)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'Average' not in done.stdout and 'no labels' in done.stdout
    folder, name = run1 / 'exp/run1', 'person_keypoints_test-dev2017_run1_results'
    assert {path.name for path in folder.iterdir()} == {
        *('config.json', 'checkpoint.pth.tar', f'{name}.json', f'{name}.zip')
    }
    entries = json.loads((folder / f'{name}.json').read_text())
    assert len(entries) > 3
    for entry in entries:
        assert set(entry) == {'image_id', 'category_id', 'keypoints', 'score'}
        assert len(entry['keypoints']) == 3 * K and entry['category_id'] == 1
    with zipfile.ZipFile(folder / f'{name}.zip') as archive:
        assert archive.namelist() == [f'{name}.json'] and archive.testzip() is None
        assert json.loads(archive.read(f'{name}.json')) == entries
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(file)).loadRes(str(folder / f'{name}.json'))
    assert {a['image_id'] for a in found.anns.values()} <= {r['id'] for r in coco.content['images']}


def test_nobody_found_is_a_submission_too(unlabelled, run1, call_script):
    file, images, _ = unlabelled()
    done = call_script('test.py', '-c', 'run1', '--annotations', file, '--images', images,
                       '--set', 'test.detection_val=9.0')  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = run1 / 'exp/run1/person_keypoints_test-dev2017_run1_results.json'
    assert json.loads(path.read_text()) == []


def test_any_labelled_file_gives_ap(make_coco, run1, call_script):
    """Also for a run whose own data are drawn, which are then not needed."""
    coco = make_coco(people=(1, 2), valid=(1,), split='val2017')
    done = call_script('test.py', '-c', 'run1', '--annotations', coco.annotations, '--images',
                       coco.images, '--set', 'data_provider=data.synthetic',
                       'test.vis=0')  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('Average Precision') == 5
    results = json.loads((run1 / 'exp/run1/results.json').read_text())
    assert results['single on person_keypoints_val2017.json']['photos'] == 3
    assert not list((run1 / 'exp/run1').glob('person_keypoints*'))


@pytest.mark.parametrize(
    'options, words',
    [
        (['--annotations', 'a.json'], 'needs --images'),
        (['--annotations', 'a.json', '--images', 'a', 'b'], 'one folder'),
        (['--out', 'out'], '--images'),
        (['--maps'], '--images'),
        (['--annotations', 'a.json', '--images', 'a', '--maps'], 'without --annotations'),
        (['--images', 'a', '--limit', '3'], '--limit'),
        (['--images', 'a', '--vis', '3'], '--vis'),
    ],
)
def test_options_that_do_not_go_together(run1, call_script, options, words):
    done = call_script('test.py', '-c', 'run1', *options)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]


def test_no_photos_of_a_file(unlabelled, run1, call_script):
    file, images, _ = unlabelled()
    done = call_script('test.py', '-c', 'run1', '--annotations', file, '--images', 'nowhere')
    assert done.returncode == 2 and 'tried nowhere/test-dev2017, nowhere;' in done.stderr
    assert done.stderr.count('\n') == 1 and '--images' in done.stderr
