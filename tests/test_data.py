"""Targets, augmentation, and how annotations and photos become samples."""

import colorsys
import json
import shutil
from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from data.coco_pose import ref
from data.coco_pose.annotations import read_file
from data.coco_pose.augment import colour, jittered, mirror, warp_sample
from data.coco_pose.dp import Dataset, GenerateHeatmap, KeypointsRef, init
from data.coco_pose.photo import read_photo
from data.coco_pose.splits import open_valid
from test import evaluate
from utils.errors import UserError
from utils.regions import draw_mask, pack

# Ranges of an augmentation that changes nothing.
NEUTRAL = {
    'rotation': 0.0,
    'aim': 0.0,
    'scale': [1.0, 1.0],
    'shift': 0.0,
    'mirror': 0.0,
    'hue': 0.0,
    'saturation': [1.0, 1.0],
    'brightness': 0.0,
    'contrast': [1.0, 1.0],
}


class Fixed:
    """Draws the lower (0) or the upper (1) end of every range."""

    def __init__(self, end):
        self.end = end

    def uniform(self, *ends):
        return ends[self.end]


def random_people(rng, count, R):
    """People (P, K, 3) with joints inside and outside of a frame, a quarter of them unlabelled."""
    people = rng.uniform(-5, R + 5, (count, 17, 3))
    people[..., 2] = rng.choice([0, 1, 2], (count, 17), p=(0.25, 0.25, 0.5))
    return people


def rewrite(coco):
    """Writes the annotations again after a test has changed coco.content."""
    coco.annotations.write_text(json.dumps(coco.content))


def ids_of(data):
    """The image ids of a Dataset."""
    return data.split.ids.tolist()


def dataset(coco, configure, *settings):
    """The training data of a drawn set, as its loader has them."""
    return init(configure(*coco.settings, *settings))['train'].dataset


# --- targets ---


@pytest.mark.parametrize('R', [16, 64, 128])
def test_the_peak_of_a_heatmap_is_the_joint(R):
    draw, drawn = GenerateHeatmap(R, 17), 0
    for person in random_people(np.random.default_rng(0), 4, R):
        heatmaps = draw(person[None])
        assert heatmaps.shape == (17, R, R) and heatmaps.dtype == np.float32
        for heatmap, (x, y, v) in zip(heatmaps, person, strict=True):
            if v > 0 and 0 <= x < R and 0 <= y < R:
                row, col = np.unravel_index(heatmap.argmax(), heatmap.shape)
                assert (col, row) == (int(x), int(y)) and heatmap.max() == 1
                drawn += 1
            elif v == 0 or not (-1 < x < R and -1 < y < R):
                assert not heatmap.any()
    assert drawn > 10


def test_a_heatmap_is_a_gaussian_cut_to_its_window():
    R, sigma = 128, 2
    joint = np.zeros((1, 17, 3))
    joint[0, 3] = 40.9, 2.2, 2  # near the upper edge, which cuts the window too
    heatmap = GenerateHeatmap(R, 17)(joint)[3]
    for y in range(R):
        for x in range(R):
            near = max(abs(x - 40), abs(y - 2)) <= 3 * sigma + 1
            value = np.exp(-((x - 40) ** 2 + (y - 2) ** 2) / (2 * sigma**2)) if near else 0
            assert heatmap[y, x] == pytest.approx(value, abs=1e-6)


def test_a_subpixel_gaussian_lies_on_its_joint():
    """Also a joint's less than a pixel before the frame, which counts to the first pixel."""
    R, sigma = 32, 1.5
    joints = np.zeros((1, 17, 3))
    joints[0, [0, 3, 16]] = (20.9, 8.2, 2), (-0.6, 31.7, 1), (5.5, 5.5, 2)
    heatmaps = GenerateHeatmap(R, 17, sigma, subpixel=True)(joints)
    rows, columns = np.mgrid[:R, :R]
    for k, (x, y, v) in enumerate(joints[0]):
        gaps = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2
        near = np.maximum(abs(columns - int(x)), abs(rows - int(y))) <= int(3 * sigma + 1)
        wanted = np.exp(-gaps / (2 * sigma**2)) * near * (v > 0)
        np.testing.assert_allclose(heatmaps[k], wanted, atol=1e-6)
    assert heatmaps[16].max() == 1  # in the middle of its pixel


def test_the_config_says_whether_heatmaps_are_of_pixels(make_coco, configure):
    coco = make_coco()
    pixels, joints = (
        dataset(coco, configure, f'train.subpixel={value}')[0, 0]['heatmaps']
        for value in (False, True)
    )
    assert pixels.max() == 1 and 0.8 < joints.max() < 1


@pytest.mark.parametrize('subpixel', [False, True])
def test_people_are_joined_by_the_maximum(subpixel):
    people = random_people(np.random.default_rng(1), 8, 64)
    people[1, :, :2] = people[0, :, :2] + 2  # close enough to overlap
    draw = GenerateHeatmap(64, 17, subpixel=subpixel)
    alone = [draw(people[p : p + 1]) for p in range(8)]
    np.testing.assert_array_equal(draw(people), np.max(alone, 0))
    assert not draw(people[:0]).any()


def test_keypoint_references_are_packed():
    R = 32
    people = random_people(np.random.default_rng(2), 6, R)
    people[4, :, 2] = 0
    refs = KeypointsRef(30, 17)(people, R)
    assert refs.shape == (30, 17, 2) and refs.dtype == np.int64
    for p in range(6):
        wanted = [
            k * R * R + int(y) * R + int(x)
            for k, (x, y, v) in enumerate(people[p])
            if v > 0 and -1 < x < R and -1 < y < R
        ]
        assert refs[p, : len(wanted), 0].tolist() == wanted
        assert (refs[p, : len(wanted), 1] == 1).all() and not refs[p, len(wanted) :].any()
    assert refs[:4, :, 1].any(1).all() and not refs[4].any() and not refs[6:].any()


def test_more_than_30_people(make_coco, configure):
    """The tags of the 30 largest are trained; the heatmaps show everybody."""
    coco = make_coco(people=(35,), size=(400, 400))
    for entry, area in zip(coco.content['annotations'], np.random.default_rng(0).permutation(37),
                           strict=True):  # fmt: skip
        entry['area'] = 500.0 + float(area)
    rewrite(coco)
    data = dataset(coco, configure, 'train.augment=False', 'train.input_res=512',
                   'train.output_res=128')  # fmt: skip
    sample = data[0, 0]
    entries = [e for e in coco.content['annotations'] if e['image_id'] == coco.train_ids[0]]
    people = np.array([e['keypoints'] for e in entries]).reshape(35, 17, 3)
    people[..., :2] *= 128 / 400
    largest = np.argsort([-e['area'] for e in entries])[:30]
    wanted = KeypointsRef(30, 17)(people[largest], 128)
    np.testing.assert_array_equal(sample['keypoints'], wanted)
    assert wanted[29, :, 1].any()
    for person in people:
        for k, (x, y, _) in enumerate(person):
            assert sample['heatmaps'][k, int(y), int(x)] == 1


# --- geometry ---


def test_without_augmentation_a_sample_is_the_photo_centred(make_coco, configure):
    """A photo of 100 x 80 in an input of 64 x 64 is 51.2 rows high, with 6.4 above and below."""
    coco = make_coco(people=(1,), size=(80, 100))
    photo = np.full((80, 100, 3), (20, 130, 250), np.uint8)  # BGR
    cv2.imwrite(str(coco.path(coco.train_ids[0])), photo, [cv2.IMWRITE_JPEG_QUALITY, 100])
    data = dataset(coco, configure, 'train.augment=False')
    sample, again = data[0, 0], data[5, 0]
    assert sample['imgs'].shape == (64, 64, 3) and sample['imgs'].dtype == np.float32
    colours = sample['imgs'][8:56, 1:63] * 255
    np.testing.assert_allclose(colours, np.broadcast_to((250, 130, 20), (48, 62, 3)), atol=3)
    assert not sample['imgs'][:6].any() and not sample['imgs'][59:].any()
    assert not sample['masks'][[0, 15]].any() and sample['masks'][3:13].all()
    joints = np.array(coco.content['annotations'][0]['keypoints']).reshape(17, 3)
    for heatmap, (x, y, _) in zip(sample['heatmaps'], joints, strict=True):
        row, col = np.unravel_index(heatmap.argmax(), (16, 16))
        assert (col, row) == (int(x * 0.16), int(y * 0.16 + 1.6))
    for name in ('imgs', 'masks', 'keypoints', 'heatmaps'):
        np.testing.assert_array_equal(sample[name], again[name])


@pytest.mark.parametrize(
    'change',
    [{'mirror': 1.0}, {'rotation': 30.0}, {'scale': [0.75, 1.25]}, {'shift': 40.0},
     {'mirror': 0.5, 'rotation': 30.0, 'scale': [0.75, 1.25], 'shift': 40.0}],
    ids=['mirror', 'rotation', 'scale', 'shift', 'all'],
)  # fmt: skip
def test_joints_move_with_the_picture(make_coco, configure, change):
    """A red dot on the left wrist and a green one on the right ankle stay on these joints.

    In a mirror they are on the right wrist and on the left ankle.
    """
    coco = make_coco(people=(1,), size=(240, 320), kind='png')
    joints = np.zeros((17, 3))
    joints[ref.COCO.names.index('left_wrist')] = 120, 60, 2
    joints[ref.COCO.names.index('right_ankle')] = 210, 170, 2
    coco.content['annotations'][0] |= {'keypoints': joints.flatten().tolist(), 'num_keypoints': 2}
    rewrite(coco)
    photo = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(photo, (120, 60), 9, (0, 0, 255), -1)
    cv2.circle(photo, (210, 170), 9, (0, 255, 0), -1)
    cv2.imwrite(str(coco.path(coco.train_ids[0])), photo)
    data = dataset(coco, configure, 'train.input_res=256', 'train.output_res=64')
    data.ranges = NEUTRAL | change
    mirrored, moved = 0, set()
    for turn in range(12):
        sample = data[turn, 0]
        seen = {name: sample['heatmaps'][ref.COCO.names.index(name)].max() > 0
                for name in ('left_wrist', 'right_wrist', 'left_ankle', 'right_ankle')}  # fmt: skip
        swapped = seen['right_wrist'] or seen['left_ankle']
        assert not (swapped and (seen['left_wrist'] or seen['right_ankle']))
        mirrored += swapped
        names = ('right_wrist', 'left_ankle') if swapped else ('left_wrist', 'right_ankle')
        for channel, name in enumerate(names):
            if not seen[name]:
                continue
            heatmap = sample['heatmaps'][ref.COCO.names.index(name)]
            row, col = np.unravel_index(heatmap.argmax(), (64, 64))
            if not (3 <= row < 61 and 3 <= col < 61):
                continue  # the dot is cut by the edge
            ys, xs = np.nonzero(sample['imgs'][..., channel] > 0.5)
            # The joint is known to a pixel of the output, which is four of the input.
            assert abs(xs.mean() + 0.5 - (4 * col + 2)) <= 3
            assert abs(ys.mean() + 0.5 - (4 * row + 2)) <= 3
            moved.add((name, int(row), int(col)))
    assert mirrored == 12 if change.get('mirror') == 1 else (mirrored > 0) == ('mirror' in change)
    assert len(moved) > 6 or change == {'mirror': 1.0}


def test_joints_move_with_the_picture_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(0)
    flip = list(ref.COCO.flip)
    for turn in range(20):
        x, y = rng.uniform((140, 100), (180, 140))
        photo = np.zeros((240, 320, 3), np.uint8)
        cv2.circle(photo, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), 16 * 12, (255,) * 3, -1,
                   cv2.LINE_AA, 4)  # fmt: skip
        people = np.zeros((1, 17, 3), np.float32)
        people[0, 5] = x, y, 2
        center = rng.uniform((150, 110), (170, 130))
        geometry = (center, rng.uniform(1.2, 2.0), rng.uniform(-30, 30))
        photo, mask, people = warp_sample(photo, None, people, geometry, 256, 64)
        joint = 5
        if turn % 2:
            photo, mask, people = mirror(photo, mask, people, flip)
            joint = 6
        moments = cv2.moments(np.ascontiguousarray(photo[..., 0]))
        seen = np.array([moments['m10'], moments['m01']]) / moments['m00'] + 0.5
        np.testing.assert_allclose(seen, 4 * people[0, joint, :2], atol=0.5)


def test_a_mirror_of_a_mirror_changes_nothing():
    rng = np.random.default_rng(0)
    photo, mask = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.random((16, 16)) < 0.5
    people = random_people(rng, 3, 16).astype(np.float32)
    flip = list(ref.COCO.flip)
    twice = mirror(*mirror(photo, mask, people, flip), flip)
    for before, after in zip((photo, mask, people), twice, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
    once = mirror(photo, mask, people, flip)[2]
    np.testing.assert_allclose(once[:, 9, 0], 16 - people[:, 10, 0], atol=1e-5)  # wrists
    np.testing.assert_array_equal(once[:, 0, 1:], people[:, 0, 1:])


def test_random_geometry_fills_its_ranges(configure):
    """Rotation of 30 degrees, scale of a quarter and a shift of 40 * scale pixels, either way."""
    ranges = configure()['augmentation']
    rng = np.random.default_rng(0)
    draws = [jittered(300, 400, ranges, rng) for _ in range(4000)]
    scale = np.array([d[1] for d in draws])
    shift = np.array([d[0] - (200, 150) for d in draws]) / scale[:, None]
    for values, low, high in (
        (np.array([d[2] for d in draws]), -30, 30),
        (scale / 2, 0.75, 1.25),
        (shift[:, 0], -40, 40),
        (shift[:, 1], -40, 40),
    ):
        assert low <= values.min() and values.max() <= high
        steps = np.histogram(values, 4, (low, high))[0] / 4000
        np.testing.assert_allclose(steps, 0.25, atol=0.04)


# --- colour ---


def slow_colour(photo, hue, saturation, brightness, contrast):
    """The same, pixel by pixel: hue in degrees."""
    result = np.zeros_like(photo)
    for y, x in np.ndindex(photo.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*photo[y, x].astype(float))
        pixel = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)
        mean = sum(pixel) / 3
        for channel in range(3):
            value = mean + (pixel[channel] - mean) * contrast + brightness
            result[y, x, channel] = min(max(value, 0), 1)
    return result


@pytest.mark.parametrize('end', [0, 1])
@pytest.mark.parametrize(
    'change',
    [{'hue': 72.0}, {'saturation': [0.5, 1.5]}, {'brightness': 0.3}, {'contrast': [0.5, 1.5]},
     {'hue': 50.0, 'saturation': [0.6, 1.4], 'brightness': 0.2, 'contrast': [0.7, 1.3]}, {}],
    ids=['hue', 'saturation', 'brightness', 'contrast', 'all', 'none'],
)  # fmt: skip
def test_colour_equals_a_slow_loop(change, end):
    photo = np.random.default_rng(0).random((12, 12, 3)).astype(np.float32)
    photo[0] = np.linspace(0, 1, 12)[:, None]  # greys, black and white
    photo[1] = np.eye(3)[np.arange(12) % 3]  # pure colours
    ranges = NEUTRAL | change
    sign = 2 * end - 1
    wanted = slow_colour(photo, sign * ranges['hue'], ranges['saturation'][end],
                         sign * ranges['brightness'], ranges['contrast'][end])  # fmt: skip
    np.testing.assert_allclose(colour(photo.copy(), ranges, Fixed(end)), wanted, atol=2e-3)


def test_colour_stays_within_0_and_1(configure):
    rng = np.random.default_rng(0)
    ranges = configure()['augmentation']
    for _ in range(50):
        photo = colour(rng.random((16, 16, 3)).astype(np.float32), ranges, rng)
        assert photo.dtype == np.float32 and 0 <= photo.min() and photo.max() <= 1


# --- masks ---


@pytest.mark.parametrize('form', ['runs', 'compressed', 'polygon', 'box'])
def test_crowds_are_masked(make_coco, configure, form):
    """A crowd in the left quarter of the photo: columns 0 to 3 of a 16 x 16 mask."""
    coco = make_coco(people=(1,), size=(80, 100), crowd=form)
    assert ('segmentation' in coco.content['annotations'][-1]) == (form != 'box')
    sample = dataset(coco, configure, 'train.augment=False')[0, 0]
    assert sample['masks'].shape == (16, 16) and sample['masks'].dtype == np.float32
    assert not sample['masks'][:, :4].any() and sample['masks'][3:13, 5:].all()
    assert not sample['masks'][[0, 15]].any()  # above and below the photo
    assert sample['keypoints'][:, :, 1].any(1).sum() == 1  # a crowd is not a person


@pytest.mark.parametrize('form', ['runs', 'compressed', 'polygon', 'box'])
@pytest.mark.parametrize('known', [True, False], ids=['size known', 'size not told'])
def test_crowd_forms_mean_the_same_pixels(make_coco, form, known):
    coco = make_coco(people=(1, 1), crowd=form)
    if not known:
        del coco.content['images'][0]['width'], coco.content['images'][0]['height']
        rewrite(coco)
    split = read_file(str(coco.annotations))
    wanted = np.zeros((80, 100), np.uint8)
    wanted[:, :25] = 1
    np.testing.assert_array_equal(draw_mask(split.crowds(0), 80, 100), wanted)
    assert split.crowds(1) == [] and not draw_mask([], 80, 100).any()


def test_several_crowds_join_and_turn_with_the_photo():
    crowd = np.zeros((100, 100), np.uint8)
    crowd[:50] = 1
    people = np.zeros((0, 17, 3), np.float32)
    _, mask, _ = warp_sample(np.zeros((100, 100, 3), np.uint8), crowd, people,
                             (np.array([50.0, 50]), 0.5, 90.0), 64, 16)  # fmt: skip
    # A quarter turn by -90 degrees brings the top to the left.
    assert not mask[2:14, 2:7].any() and mask[2:14, 9:14].all()
    square = pack([[0, 0, 10, 0, 10, 10, 0, 10]], [60, 80])
    assert draw_mask([square, np.array([50.0, 20, 10, 20])], 60, 80).sum() == 100 + 200


# --- annotations and photos ---


def test_people_without_a_segmentation(make_coco, configure):
    coco = make_coco(people=(2,))
    for entry in coco.content['annotations']:
        del entry['segmentation']
    rewrite(coco)
    sample = dataset(coco, configure, 'train.augment=False')[0, 0]
    assert sample['keypoints'][:, :, 1].any(1).sum() == 2


def test_people_without_labelled_joints_are_left_out(make_coco, configure):
    coco = make_coco(people=(2, 1, 0))
    for entry in coco.content['annotations'][1:3]:
        entry |= {'num_keypoints': 0, 'keypoints': [0] * 51}
    rewrite(coco)
    data = dataset(coco, configure, 'train.augment=False')
    assert ids_of(data) == coco.train_ids[:1]  # the other two have nobody to learn from
    assert data[0, 0]['keypoints'][:, :, 1].any(1).sum() == 1


@pytest.mark.parametrize('split', ['train2014', 'val2014', 'train2017', 'val2017'])
@pytest.mark.parametrize('inside', [False, True])
def test_published_layouts(make_coco, configure, split, inside):
    """train2014/COCO_train2014_*.jpg, train2017/*.jpg, and photos in the folder itself."""
    coco = make_coco(split=split, inside=inside)
    for image_id in coco.train_ids:
        name = f'COCO_{split}_{image_id:012d}.jpg' if '2014' in split else f'{image_id:012d}.jpg'
        assert (coco.images / ('' if inside else split) / name).is_file()
    loaders = init(configure(*coco.settings))
    batch = next(iter(loaders['train']))
    assert set(batch['image_id'].tolist()) <= set(coco.train_ids)
    assert batch['problem'] == ['', '']
    assert next(iter(loaders['valid']))['image_id'].tolist() == coco.valid_ids


def test_the_published_ids_are_the_validation_split(shared):
    ids = [int(line) for line in ref.VALID_IDS.read_text().split()]
    assert len(ids) == len(set(ids)) == 500
    assert ids == [int(line) for line in (shared / 'coco' / 'valid_id.txt').read_text().split()]


def test_training_and_validation_do_not_overlap(make_coco, configure):
    coco = make_coco(people=(1, 0, 2, 1), valid=(1, 0, 2))
    loaders = init(configure(*coco.settings))
    with_people = [coco.train_ids[i] for i in (0, 2, 3)]
    assert ids_of(loaders['train'].dataset) == with_people
    assert loaders['valid_split'].ids.tolist() == coco.valid_ids
    assert ids_of(loaders['valid'].dataset) == coco.valid_ids
    drawn = {i for batch in islice(loaders['train'], 10) for i in batch['image_id'].tolist()}
    assert drawn == set(with_people)


def test_another_file_validates_as_a_whole(make_coco, configure):
    """Its images leave training where they are in both files, and the published ids stay."""
    coco = make_coco(people=(1, 1, 1), valid=(1, 1))
    other = make_coco(name='other', split='val2017', people=(1, 0, 1), valid=(), first_id=900003)
    shutil.copy(coco.path(900003), other.path(900003))  # the same photo in another folder
    config = configure(*coco.settings, f'data.valid_annotations={other.annotations}',
                       f'data.valid_images={other.images}')  # fmt: skip
    loaders = init(config)
    assert loaders['valid_split'].ids.tolist() == [900003, 900004, 900005]
    assert ids_of(loaders['train'].dataset) == [900001, 900002, *coco.valid_ids]
    assert loaders['valid_split'].path(0) == other.path(900003)


def test_a_file_may_validate_on_itself(make_coco, configure):
    coco = make_coco(people=(1, 1), valid=(1,))
    loaders = init(configure(*coco.settings, f'data.valid_annotations={coco.annotations}'))
    ids = [*coco.train_ids, *coco.valid_ids]
    assert ids_of(loaders['train'].dataset) == loaders['valid_split'].ids.tolist() == ids


@pytest.mark.parametrize('kind', ['png', 'grey', 'alpha', '16bit'])
def test_photos_of_all_kinds(make_coco, configure, kind):
    coco = make_coco(people=(1,), kind=kind)
    plain = make_coco(name='plain', people=(1,), kind='png')
    photo = read_photo(coco.path(coco.train_ids[0]))
    wanted = cv2.imread(str(plain.path(plain.train_ids[0])), cv2.IMREAD_COLOR_RGB)
    if kind == 'grey':
        wanted = np.repeat(
            cv2.imread(str(coco.path(900001)), cv2.IMREAD_UNCHANGED)[..., None], 3, 2
        )
    assert photo.shape == (80, 100, 3) and photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, wanted)
    assert next(iter(init(configure(*coco.settings))['train']))['problem'] == ['', '']


def test_a_photo_is_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / 'red.png'), np.full((4, 4, 3), (0, 0, 255), np.uint8))
    assert read_photo(tmp_path / 'red.png')[0, 0].tolist() == [255, 0, 0]


# --- the order of samples ---


def test_one_image_trains(make_coco, configure):
    coco = make_coco(people=(1,), valid=(1,))
    loaders = init(configure(*coco.settings, 'train.batchsize=4', 'train.valid_iters=3'))
    batches = list(islice(loaders['train'], 3))
    assert all(batch['image_id'].tolist() == [coco.train_ids[0]] * 4 for batch in batches)
    assert not torch.equal(batches[0]['imgs'], batches[1]['imgs'])  # newly augmented each time
    assert not torch.equal(batches[0]['imgs'][0], batches[0]['imgs'][1])
    assert len(list(loaders['valid'])) == 3


def test_every_pass_has_all_images_in_an_order_of_its_own(make_coco, configure):
    coco = make_coco(people=(1,) * 7, size=(32, 32))
    loader = init(configure(*coco.settings, 'train.batchsize=1'))['train']
    drawn = [int(batch['image_id']) for batch in islice(loader, 28)]
    passes = [tuple(drawn[i : i + 7]) for i in range(0, 28, 7)]
    assert all(sorted(one) == coco.train_ids for one in passes)
    assert len(set(passes)) == 4


def equal(batches, others):
    """Whether two lists of batches hold the same samples."""
    return all(
        torch.equal(one[name], other[name])
        for one, other in zip(batches, others, strict=True)
        for name in ('imgs', 'masks', 'keypoints', 'heatmaps', 'image_id')
    )


def test_samples_do_not_depend_on_the_workers(make_coco, configure):
    coco = make_coco(people=(1, 2, 1))
    draw = lambda *more: list(islice(init(configure(*coco.settings, *more))['train'], 5))  # noqa: E731
    alone = draw()
    torch.manual_seed(99)
    assert equal(alone, draw('train.num_workers=2'))


def test_the_seed_decides_order_and_augmentation(make_coco, configure):
    coco = make_coco(people=(1, 2, 1, 1, 1, 1))
    loaders = [init(configure(*coco.settings, f'train.seed={seed}'))['train'] for seed in (0, 1)]
    ids = [[batch['image_id'].tolist() for batch in islice(one, 3)] for one in loaders]
    assert ids[0] != ids[1]
    samples = [loader.dataset[0, 0]['imgs'] for loader in loaders]
    assert not np.array_equal(*samples)
    assert np.array_equal(samples[0], loaders[0].dataset[0, 0]['imgs'])


def test_samples_go_on_where_they_stopped(make_coco, configure):
    """Also in the middle of a pass, and with another batch size."""
    coco = make_coco(people=(1, 2, 1))
    config = configure(*coco.settings)
    straight = list(islice(init(config)['train'], 6))
    assert equal(straight[2:], list(islice(init(config, samples_done=4)['train'], 4)))
    config = configure(*coco.settings, 'train.batchsize=4')
    (larger,) = islice(init(config, samples_done=4)['train'], 1)
    assert torch.equal(larger['imgs'], torch.cat([straight[2]['imgs'], straight[3]['imgs']]))


def test_validation_is_the_same_every_time(make_coco, configure):
    loader = init(configure(*make_coco().settings, 'train.valid_iters=2'))['valid']
    assert equal(list(loader), list(loader))


# --- broken photos ---


@pytest.mark.parametrize('kept', [0, 100, 0.5, 0.95, -200, -2])
def test_training_replaces_a_truncated_photo_and_says_so(make_coco, configure, kept):
    """Of a JPEG that ends after so many bytes, or such a share of them, or so many too early."""
    coco = make_coco(people=(1, 2), size=(200, 200))
    path = coco.path(coco.train_ids[0])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(kept * size) if 0 < kept < 1 else kept])
    data = dataset(coco, configure)
    sample = data[0, 0]
    assert sample['image_id'] == coco.train_ids[1]
    assert path.name in sample['problem'] and '\n' not in sample['problem']
    assert ('cut short' in sample['problem']) == (kept != 0)
    assert data[0, 1]['problem'] == ''


def test_training_ends_where_no_photo_can_be_read(make_coco, configure):
    coco = make_coco(people=(1, 1))
    for image_id in coco.train_ids:
        coco.path(image_id).write_bytes(b'\xff\xd8')
    with pytest.raises(UserError, match='no photo'):
        dataset(coco, configure)[0, 0]


@pytest.mark.parametrize('workers', [0, 1])
def test_evaluation_counts_a_truncated_photo(make_coco, configure, workers, capsys):
    """It has no detections, and is named in one line, also from a worker."""
    coco = make_coco(valid=(1, 1))
    path = coco.path(coco.valid_ids[1])
    path.write_bytes(path.read_bytes()[:-200])
    config = configure(*coco.settings, f'test.num_workers={workers}')

    def func(images):
        return [torch.ones(len(images), 1, 34, 16, 16)]

    func.config, func.device = config, 'cpu'
    figures, *_, detections = evaluate(func, init(config)['valid_split'])
    assert figures['unread'] == 1 and {d['image_id'] for d in detections} == {coco.valid_ids[0]}
    warnings = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
    assert len(warnings) == 1 and str(path) in warnings[0]


def test_a_photo_of_another_size_is_refused(make_coco, configure):
    coco = make_coco(people=(1,), valid=(1,))
    cv2.imwrite(str(coco.path(coco.valid_ids[0])), np.zeros((80, 99, 3), np.uint8))
    with pytest.raises(UserError, match='99 x 80.*100 x 80'):
        read_photo(coco.path(coco.valid_ids[0]), (80, 100))


def test_the_dataset_can_be_built_by_hand(make_coco, configure):
    """Dataset(split, settings): the validation view of a split."""
    coco = make_coco(valid=(2, 1))
    config = configure(*coco.settings)
    data = Dataset(open_valid(config['data']), config['train'])
    assert len(data) == 2 and data[0, 1]['image_id'] == coco.valid_ids[1]
