"""From heatmaps and tags to people, and from a photo to people."""

import copy
import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
import torch

import test
from data.coco_pose import ref
from data.coco_pose.dp import GenerateHeatmap
from task import pose
from test import multiperson, refine
from tests import references
from utils.affine import kpt_affine
from utils.assignment import assign
from utils.group import COCO_ORDER, HeatmapParser, adjust

K = 17
FLIP = list(ref.COCO.flip)


def scatter(rng, count, R, missing=0.3):
    """People (P, K, 3) whose joints of the same type lie 6 pixels apart; some are missing."""
    people = np.zeros((count, K, 3))
    for k in range(K):
        placed = []
        while len(placed) < count:
            point = rng.uniform(2, R - 2, 2)
            if all(np.abs(point - other).max() >= 6 for other in placed):
                placed.append(point)
        people[:, k, :2] = np.reshape(placed, (count, 2))
    people[..., 2] = 2 * (rng.random((count, K)) >= missing)
    people[np.arange(count), rng.integers(K, size=count), 2] = 2
    return people


def draw(people, tags, R, values=None, reach=0):
    """Maps of a scene: det (K, R, R), tag (K, R, R, D) with tags (P, D) at people's joints.

    values (P,): the height of a person's peaks, 1 if not given. reach: how many pixels around a
    joint have its tag, too; all others have noise.
    """
    det = np.zeros((K, R, R), np.float32)
    tag = np.random.default_rng(9).normal(0, 9, (K, R, R, tags.shape[1])).astype(np.float32)
    heatmaps = GenerateHeatmap(R, K)
    for p, person in enumerate(people):
        det = np.maximum(det, heatmaps(person[None]) * (1 if values is None else values[p]))
        for k, (x, y, v) in enumerate(person):
            if v > 0:
                rows = slice(max(int(y) - reach, 0), int(y) + reach + 1)
                tag[k, rows, max(int(x) - reach, 0) : int(x) + reach + 1] = tags[p]
    return det, tag


def group_one(det, tag, **options):
    return HeatmapParser(**options).parse(det[None], tag[None])[0]


def whose(found, tags):
    """For each person found the number of the true one of the nearest tag."""
    seen = found[:, :, 2] > 0
    means = [person[mask, 3:].mean(0) for person, mask in zip(found, seen, strict=True)]
    return [int(np.abs(tags - mean).sum(1).argmin()) for mean in means]


# --- grouping ---


@pytest.mark.parametrize('D', [1, 2])
@pytest.mark.parametrize('count', [1, 2, 6, 12])
def test_people_drawn_are_people_found(count, D):
    rng = np.random.default_rng(count)
    for _ in range(4):
        people = scatter(rng, count, 96)
        tags = np.stack([3.0 * rng.permutation(count) for _ in range(D)], 1)  # (P, D)
        found = group_one(*draw(people, tags, 96))
        assert found.shape == (count, K, 3 + D) and found.dtype == np.float32
        owners = whose(found, tags)
        assert sorted(owners) == list(range(count))
        for person, p in zip(found, owners, strict=True):
            visible = people[p, :, 2] > 0
            np.testing.assert_array_equal(person[:, 2] > 0, visible)
            # A peak stands in the middle of its pixel, give or take the quarter of a pixel.
            np.testing.assert_array_equal(
                np.floor(person[visible, :2]), np.floor(people[p, visible, :2])
            )
            np.testing.assert_allclose(person[visible, 3:], np.tile(tags[p], (visible.sum(), 1)))
            assert not person[~visible].any()


def test_noisy_tags_still_group():
    rng = np.random.default_rng(0)
    people, tags = scatter(rng, 8, 96), 3.0 * np.arange(8)[:, None]
    det, tag = draw(people, tags, 96)
    found = group_one(det, tag + rng.uniform(-0.4, 0.4, tag.shape).astype(np.float32))
    owners = whose(found, tags)
    assert sorted(owners) == list(range(8))
    for person, p in zip(found, owners, strict=True):
        np.testing.assert_array_equal(person[:, 2] > 0, people[p, :, 2] > 0)


def test_a_far_tag_starts_a_new_person():
    """tag_val is the root mean square over D at which a joint no longer joins."""
    person = np.zeros((2, K, 3))
    person[0, 0] = 10, 10, 2
    person[1, 5] = 20, 20, 2
    for gap, count in ((0.95, 1), (1.05, 2)):
        det, tag = draw(person, np.array([[0.0, 0.0], [gap, gap]]), 32)
        assert len(group_one(det, tag)) == count
        assert len(group_one(det, tag, tag_val=2.0)) == 1
    det, tag = draw(person, np.array([[0.0, 0.0], [1.3, 0.0]]), 32)  # 0.92 over both
    assert len(group_one(det, tag)) == 1


def test_never_more_people_than_allowed_but_joints_still_join():
    """35 people with all joints: the 30 surest noses are people, and get all their other joints."""
    rng = np.random.default_rng(0)
    people, tags = scatter(rng, 35, 128, missing=0.0), 3.0 * np.arange(35)[:, None]
    values = np.linspace(1.0, 0.3, 35)
    found = group_one(*draw(people, tags, 128, values))
    assert sorted(whose(found, tags)) == list(range(30))
    assert (found[:, :, 2] > 0).all()
    assert len(group_one(*draw(people, tags, 128, values), max_num_people=7)) == 7


def test_beyond_30_people_only_newcomers_are_refused():
    """20 people with noses, then 20 others without: 10 of these are too many."""
    rng = np.random.default_rng(0)
    people, tags = scatter(rng, 40, 160, missing=0.0), 3.0 * np.arange(40)[:, None]
    people[20:, 0, 2] = 0  # no nose
    people[:20, 1, 2] = 0  # no left eye: all the left eyes are of newcomers
    found = group_one(*draw(people, tags, 160, np.linspace(1.0, 0.5, 40)))
    owners = whose(found, tags)
    assert sorted(owners) == list(range(30))  # the surest of the newcomers
    seen = found[:, :, 2] > 0
    for mask, p in zip(seen, owners, strict=True):
        assert mask[2:].all() and mask[0] == (p < 20) and mask[1] == (p >= 20)


def match(joints, values, tags, **options):
    """Values (P, K) of the people that peaks make: of each its joint, value and one tag."""
    joints, values, tags = (np.array(column) for column in (joints, values, tags))
    points = np.zeros((len(joints), 2))
    return HeatmapParser(**options).match(joints, points, values, tags[:, None], K)[:, :, 2]


def test_peaks_are_written_in_falling_value():
    """A newcomer with a person's own first tag takes its joint over, or loses it to the next."""
    # Nose tags 0 and 0.9 are two people. Of the eyes at 0.2, 0 and 2, three peaks for two people,
    # the first joins the person of tag 0; that of tag exactly 0 has nobody left: it is the same
    # person by its first tag, and comes later.
    values = match([0, 0, 1, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5], [0.0, 2.0, 0.2, 0.0, 2.1])
    np.testing.assert_allclose(values[:, :2], [[0.9, 0.6], [0.8, 0.5]], rtol=1e-6)
    values = match([0, 0, 1, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5], [0.0, 2.0, 0.0, 0.2, 2.1])
    np.testing.assert_allclose(values[0, :2], [0.9, 0.7], rtol=1e-6)


def test_tie_break_by_value():
    """Of people equally far, the surer peak goes to the surer person."""
    # Two noses and two eyes, all tags within 0.5: every cost of a row is the same.
    peaks = [0, 0, 1, 1], [0.9, 0.3, 0.8, 0.2], [0.0, 0.3, 0.2, 0.1]
    values = match(*peaks, tie_break='value')
    np.testing.assert_allclose(values[:, :2], [[0.9, 0.8], [0.3, 0.2]], rtol=1e-6)
    # The first person started with 0.3, but by its eye it is surer now than the second.
    peaks = [0, 0, 1, 2, 2], [0.5, 0.4, 0.9, 0.8, 0.2], [0.0, 1.4, 1.4, 0.7, 0.7]
    values = match(*peaks, tie_break='value')
    np.testing.assert_allclose(values[:, 2], [0.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(match(*peaks)[:, 2], [0.8, 0.2], rtol=1e-6)


def test_tie_break_counts_the_joints_that_a_person_has():
    """Also those of a newcomer that turned out to be the same person."""
    joints = [0, 0, 1, 1, 1, 2, 2]  # the eye at 0.0 starts anew the person of the nose at 0.0
    values, tags = [0.62, 0.55, 0.58, 0.4, 0.35, 0.5, 0.1], [2.0, 0.0, 2.1, 0.2, 0.0, 1.0, 1.0]
    found = match(joints, values, tags, tie_break='value', tag_val=2.0)
    wanted = [[0.62, 0.58, 0.5], [0.55, 0.35, 0.1]]  # means of 0.6 and 0.45 before the last
    np.testing.assert_allclose(found[:, :3], wanted, rtol=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_tags_that_are_not_finite_come_to_an_end(bad):
    people = scatter(np.random.default_rng(0), 4, 64, missing=0.0)
    det, tag = draw(people, np.zeros((4, 1)), 64)
    tag[::2] = bad
    found = group_one(det, tag)
    assert len(found) > 0 and np.isfinite(found).all()


def test_peaks_must_exceed_the_threshold():
    people = scatter(np.random.default_rng(0), 3, 64, missing=0.0)
    tags, values = 3.0 * np.arange(3)[:, None], np.array([0.5, 0.1, 0.11], np.float32)
    det, tag = draw(people, tags, 64, values)
    assert sorted(whose(group_one(det, tag), tags)) == [0, 2]
    assert whose(group_one(det, tag, detection_val=0.11), tags) == [0]
    assert len(group_one(det, tag, detection_val=0.05)) == 3
    assert group_one(det, tag, detection_val=0.5).shape == (0, K, 4)


def test_joints_are_visited_from_the_head_down():
    """A person starts from the first of the order; the value of a found joint is its peak's."""
    assert COCO_ORDER == (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
    # Hips (11) come before elbows (7): of tags 0, 0.9 and 1.8 the hip joins the shoulder, and
    # then the elbow, 1.35 from their mean, is a person of its own.
    people = np.zeros((3, K, 3))
    people[0, 5], people[1, 11], people[2, 7] = (10, 10, 2), (20, 20, 2), (10, 25, 2)
    det, tag = draw(people, np.array([[0.0], [0.9], [1.8]]), 32, [0.9, 0.8, 0.7])
    found = group_one(det, tag)
    assert [np.flatnonzero(person[:, 2]).tolist() for person in found] == [[5, 11], [7]]
    np.testing.assert_allclose(found[0, [5, 11], 2], [0.9, 0.8], rtol=1e-6)


def test_adjust_moves_a_quarter_toward_the_larger_neighbour():
    det = np.zeros((1, K, 16, 16), np.float32)
    det[0, 0, 5, 7], det[0, 0, 5, 8], det[0, 0, 4, 7] = 1.0, 0.5, 0.3
    tag = np.zeros((1, K, 16, 16, 1), np.float32)
    parser = HeatmapParser()
    assert parser.parse(det, tag)[0][0, 0, :2].tolist() == [7.75, 5.25]
    assert parser.parse(det, tag, adjust_points=False)[0][0, 0, :2].tolist() == [7, 5]
    det[0, 0, 5, 8] = det[0, 0, 4, 7] = 0
    assert parser.parse(det, tag)[0][0, 0, :2].tolist() == [7.25, 5.25]  # equal neighbours


def test_subpixel_finds_where_a_gaussian_was_drawn():
    """Between pixels, in x and y, for peaks and for the joints that refine fills in."""
    centres = np.random.default_rng(0).uniform(3, 29, (K, 2))
    y, x = np.mgrid[:32, :32] + 0.5  # a pixel's centre
    gaps = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    det = np.exp(-gaps / (2 * 1.2**2)).astype(np.float32)
    tag = np.zeros((K, 32, 32, 1), np.float32)
    (person,) = group_one(det, tag, subpixel=True)
    np.testing.assert_allclose(person[:, :2], centres, atol=1e-3)
    assert np.abs(group_one(det, tag)[0, :, :2] - centres).max() > 0.1
    person[1:] = 0
    np.testing.assert_allclose(refine(det, tag, person, True)[:, :2], centres, atol=1e-3)
    settings = {**pose.__config__['test'], 'subpixel': True, 'detection_val': 0.9}
    people, seen, _ = test.group_seen(*map(torch.tensor, (det, tag)), np.eye(2, 3), settings)
    assert 0 < seen.sum() < K  # the others are filled in
    np.testing.assert_allclose(people[0, :, :2], centres, atol=1e-3)


def test_subpixel_never_leaves_the_pixel():
    """Whatever surrounds it: noise, a plateau, the frame, the edge of a photo, nothing above 0."""
    rng = np.random.default_rng(0)
    det = torch.from_numpy(rng.normal(0, 0.5, (2, 3, 9, 8)).astype(np.float32))
    det[0, 0], det[0, 1, :, 4:], det[1, 2, 5:] = 0.5, -torch.inf, 0
    pixels = torch.cartesian_prod(*map(torch.arange, det.shape))
    points = adjust(pixels, det, subpixel=True)
    assert points.isfinite().all()
    assert (points - pixels[:, [3, 2]] - 0.5).abs().max() <= 0.5
    plateau = (pixels[:, :2] == 0).all(1)
    assert torch.equal(points[plateau], pixels[plateau][:, [3, 2]] + 0.5)


def test_peaks_at_the_border_are_found():
    for x, y in ((0, 0), (15, 0), (0, 15), (15, 15)):
        people = np.zeros((1, K, 3))
        people[0, 0] = x, y, 2
        found = group_one(*draw(people, np.zeros((1, 1)), 16))
        assert np.floor(found[0, 0, :2]).tolist() == [x, y]


def test_arrays_tensors_and_batches_agree():
    rng = np.random.default_rng(0)
    scenes = [draw(scatter(rng, n, 64), 3.0 * np.arange(n)[:, None], 64) for n in (3, 0, 5)]
    det, tag = (np.stack(maps) for maps in zip(*scenes, strict=True))
    parser = HeatmapParser()
    arrays, tensors = parser.parse(det, tag), parser.parse(*map(torch.from_numpy, (det, tag)))
    assert [len(people) for people in arrays] == [3, 0, 5]
    for b, (people, same) in enumerate(zip(arrays, tensors, strict=True)):
        np.testing.assert_array_equal(people, same)
        np.testing.assert_array_equal(people, group_one(det[b], tag[b]))


def test_nothing_seen_is_nobody_found():
    found = group_one(np.zeros((K, 16, 16), np.float32), np.zeros((K, 16, 16, 2), np.float32))
    assert found.shape == (0, K, 5) and found.dtype == np.float32


@pytest.mark.parametrize('kind', ['random', 'equal', 'rounded'])
def test_the_assignment_is_the_cheapest(kind):
    """Against all there are, of up to 5 rows and columns."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows, cols = rng.integers(1, 6, 2)
        cost = rng.uniform(-1, 3, (rows, cols))
        if kind != 'random':
            cost = np.zeros_like(cost) if kind == 'equal' else 100 * cost.round() + 0.01 * cost
        chosen_rows, chosen_cols = assign(cost)
        assert len(set(chosen_rows)) == len(set(chosen_cols)) == min(rows, cols)
        wide = cost if rows <= cols else cost.T
        cheapest = min(
            wide[np.arange(len(wide)), list(order)].sum()
            for order in permutations(range(wide.shape[1]), len(wide))
        )
        assert cost[chosen_rows, chosen_cols].sum() == pytest.approx(cheapest)


# --- refine ---


@pytest.mark.parametrize('D', [1, 2])
def test_refine_equals_a_slow_loop(D):
    rng = np.random.default_rng(D)
    for missing in ([3], [0, 9, 16], list(range(1, K))):
        det = rng.random((K, 20, 24)).astype(np.float32)
        det[9] *= 1e-4  # hardly anything, yet more than nothing: the value is raised to 1e-3
        tag = rng.normal(0, 2, (K, 20, 24, D)).astype(np.float32)
        person = np.zeros((K, 3 + D), np.float32)
        person[:, 0], person[:, 1] = rng.uniform(0, 24, K), rng.uniform(0, 20, K)
        person[:, 2], person[:, 3:] = rng.uniform(0.2, 1, K), rng.normal(0, 0.3, (K, D))
        person[missing] = 0
        before = person.copy()
        refined = refine(det, tag, person)
        wanted = references.refine(det, tag, person)
        np.testing.assert_array_equal(person, before)  # the caller's person stays as it is
        found = before[:, 2] > 0
        np.testing.assert_array_equal(refined[found], before[found])
        np.testing.assert_array_equal(np.floor(refined[:, :2]), wanted[:, :2])
        np.testing.assert_allclose(refined[:, 2], wanted[:, 2], rtol=1e-6)
        same = refine(torch.from_numpy(det), torch.from_numpy(tag), person)
        np.testing.assert_array_equal(refined, same)


def test_refine_takes_several_people_at_once():
    rng = np.random.default_rng(0)
    people = scatter(rng, 7, 64, missing=0.5)
    det, tag = draw(people, 3.0 * np.arange(7)[:, None], 64)
    det += rng.uniform(0, 0.09, det.shape).astype(np.float32)
    found = group_one(det, tag)
    assert (found[:, :, 2] == 0).sum() > 20
    alone = [refine(det, tag, person) for person in found]
    np.testing.assert_array_equal(refine(det, tag, found), alone)
    assert refine(det, tag, found[:0]).shape == (0, K, 4)


def test_refine_leaves_the_complete_and_the_empty_person_alone():
    det, tag = np.ones((K, 8, 8), np.float32), np.zeros((K, 8, 8, 1), np.float32)
    for person in (np.ones((K, 4), np.float32), np.zeros((K, 4), np.float32)):
        np.testing.assert_array_equal(refine(det, tag, person), person)


def test_scores_are_of_what_was_seen():
    """The mean over all 17 joints before refine, in the order of people, filled in or not."""
    rng = np.random.default_rng(0)
    people = scatter(rng, 6, 96, missing=0.4)
    tags = 3.0 * rng.permutation(6)[:, None]
    values = rng.uniform(0.3, 1, 6)
    det, tag = draw(people, tags, 96, values)
    settings = pose.__config__['test']
    maps = torch.from_numpy(det), torch.from_numpy(tag), np.eye(2, 3)
    seen, seen_scores = test.group(*maps, settings | {'refine': False})
    full, scores = test.group(*maps, settings | {'refine': True})
    np.testing.assert_array_equal(scores, seen_scores)
    for p, person, refined, score in zip(whose(seen, tags), seen, full, scores, strict=True):
        found = person[:, 2] > 0
        assert score == pytest.approx(values[p] * (people[p, :, 2] > 0).sum() / K, rel=1e-5)
        np.testing.assert_array_equal(refined[found], person[found])
        assert (refined[:, 2] > 0).sum() >= found.sum()


# --- merging passes and scales ---


def mirrored(photo):
    """What a perfect network says of the mirror image: (C, H, W) of C = 2 K channels."""
    det, tag = photo[:K], photo[K : 2 * K]
    return torch.cat([det[FLIP], tag[FLIP]]).flip(-1)


def passes(seed, side=8):
    photo = torch.rand(2 * K, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.stack([photo, mirrored(photo)])


def test_the_mirrored_pass_is_mirrored_back():
    both = passes(0)
    det, tag, first = test.merge([both], [1.0], K, FLIP)
    torch.testing.assert_close(det, both[0, :K])
    for d in range(2):
        torch.testing.assert_close(tag[..., d], both[0, K:])
    assert first == 0 and tag.shape == (K, 8, 8, 2)


def test_heatmaps_are_the_mean_clipped_at_1():
    both = passes(0)
    both[1, :K] *= 3
    det, _, _ = test.merge([both], [1.0], K, FLIP)
    torch.testing.assert_close(det, (2 * both[0, :K]).clamp(max=1))
    scales = [passes(seed) for seed in (1, 2, 3)]
    det, _, _ = test.merge(scales, [1.2, 1.0, 0.9], K, FLIP)
    torch.testing.assert_close(det, torch.stack([both[0, :K] for both in scales]).mean(0))


@pytest.mark.parametrize('bad', [1e3, float('nan'), float('inf')])
def test_a_diverged_scale_is_left_out(bad):
    kept, other = passes(0), passes(1)
    for position in (0, 1):
        broken = passes(2, side=16)
        broken[position, 3, 4, 5] = bad
        for order, scales in (([broken, kept, other], [2.0, 1.0, 0.5]),
                              ([kept, broken, other], [1.0, 1.5, 0.5])):  # fmt: skip
            det, tag, first = test.merge(order, scales, K, FLIP)
            without = test.merge([kept, other], [1.0, 0.5], K, FLIP)
            torch.testing.assert_close(det, without[0])
            torch.testing.assert_close(tag, without[1])
            assert first == order.index(kept) if order[0] is kept else first == 1
    det, tag, first = test.merge([broken], [1.0], K, FLIP)
    assert first == 0 and not det.any() and not tag.any() and det.shape == tag.shape[:3]


@pytest.mark.parametrize(
    'scales, nearest', [((2, 1, 0.5), 1), ((2, 1.4, 0.5), 1), ((3, 2, 0.8), 2), ((1.2, 2, 3), 0)]
)
def test_tags_are_of_the_scale_nearest_1(scales, nearest):
    """At the size of the first scale, whose heatmaps the others are resized to."""
    preds = [passes(seed, side=max(8, int(16 * scale / scales[0]))) for seed, scale in
             enumerate(scales)]  # fmt: skip
    for seed, both in enumerate(preds):
        both[:, K:] = 100 * (seed + 1)
    det, tag, first = test.merge(preds, scales, K, FLIP)
    assert first == 0 and det.shape == (K, 16, 16) and tag.shape == (K, 16, 16, 2)
    assert (tag == 100 * (nearest + 1)).all()


# --- photos ---


class Scene:
    """A network that sees the same people in every photo: drawn into each input and its mirror.

    people (P, K, 3) in the frame of a 128 x 128 output, tags (P, D).
    """

    def __init__(self, people, tags):
        self.people, self.tags = people, tags
        self.inputs = []

    def __call__(self, images):
        self.inputs.append(images)
        side = images[0].shape[0] // 4
        people = self.people * (side / 128, side / 128, 1)
        det, tag = draw(people, self.tags, side, reach=3)
        photo = torch.from_numpy(np.concatenate([det, tag[..., 0]]))
        return [torch.stack([photo, mirrored(photo)])[:, None]]  # (2, S = 1, C, h, w)


@pytest.mark.parametrize('mode', ['single', 'multi'])
def test_people_come_out_in_image_pixels(mode):
    """A photo of 640 x 480: an output pixel is 5 of its pixels, and 80 rows are above it."""
    people = np.zeros((2, K, 3))
    people[0, :, :2] = np.linspace((20, 30), (50, 90), K)
    people[1, :, :2] = np.linspace((80, 25), (110, 100), K)
    people[..., 2] = 2
    people[0, [4, 9], 2] = 0
    scene = Scene(people, np.array([[0.0], [4.0]]))
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    found, scores = multiperson(photo, scene, mode)
    sides = {'single': [512], 'multi': [1024, 512, 256]}[mode]
    assert [[image.shape for image in pair] for pair in scene.inputs] == [
        [(side, side, 3)] * 2 for side in sides
    ]
    for image, mirror in scene.inputs:
        assert image.dtype == np.float32 and 0 <= image.min() and 0.9 < image.max() <= 1
        np.testing.assert_array_equal(mirror, image[:, ::-1])
        assert not image[: len(image) // 8 - 2].any() and image[len(image) // 2].any()
    assert found.shape == (2, K, 5) and scores.shape == (2,)
    assert (found[..., 2] > 0).all()  # refine has filled in the two that are missing
    found = found[np.argsort(found[:, 0, 3])]
    wanted = people[..., :2] * 5 - (0, 80)
    visible = people[..., 2] > 0
    gap = np.abs(found[..., :2] - wanted)[visible]
    assert gap.max() <= 5 * 0.75 + 1e-3 if mode == 'single' else gap.max() < 10
    if mode == 'single':
        assert sorted(scores.tolist()) == pytest.approx([15 / 17, 1])


def converted(kind, photo):
    """The photo as it would be read in another format, and the 8 bit RGB that it stands for."""
    grey = photo[..., :1]
    deep = photo.astype(np.uint16) * 256 + 77  # the lower 8 bits are of no account
    return {
        'grey': (grey[..., 0], np.repeat(grey, 3, 2)),
        'one channel': (grey, np.repeat(grey, 3, 2)),
        'alpha': (np.dstack([photo, grey]), photo),
        '16 bit': (deep, photo),
        '16 bit grey': (deep[..., 0], np.repeat(grey, 3, 2)),
        'a view': (np.dstack([photo, photo])[:, :, 3:], photo),
    }[kind]


@pytest.mark.parametrize(
    'kind', ['grey', 'one channel', 'alpha', '16 bit', '16 bit grey', 'a view']
)
def test_photos_of_all_kinds(kind):
    given, plain = converted(kind, np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    person = np.full((1, K, 3), 60.0)
    scenes = Scene(person, np.zeros((1, 1))), Scene(person, np.zeros((1, 1)))
    people, _ = multiperson(given, scenes[0])
    wanted, _ = multiperson(plain, scenes[1])
    np.testing.assert_array_equal(scenes[0].inputs[0], scenes[1].inputs[0])
    np.testing.assert_array_equal(people, wanted)


@pytest.mark.parametrize('size', [(300, 1), (1, 300), (1, 1), (7, 2000)])
@pytest.mark.parametrize('mode', ['single', 'multi'])
@pytest.mark.parametrize('square', [True, False])
def test_thin_photos(configure, size, mode, square):
    network = pose.make_network(configure()).network
    config = configure(f'test.square={square}', 'test.max_num_people=3')
    func = test.Predictor(network, config, torch.device('cpu'), torch.float32)
    people, scores = multiperson(np.full((*size, 3), 99, np.uint8), func, mode)
    assert people.shape == (len(scores), K, 5) and np.isfinite(people).all()


@pytest.mark.parametrize(
    'photo', [np.zeros((8, 8, 3)), np.zeros((8, 8, 5), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_photo_is_refused(photo):
    with pytest.raises(ValueError, match='uint8 RGB'):
        multiperson(photo, Scene(np.zeros((0, K, 3)), np.zeros((0, 1))))


def test_a_photo_of_nobody(configure):
    nobody = Scene(np.zeros((0, K, 3)), np.zeros((0, 1)))
    people, scores = multiperson(np.zeros((64, 48, 3), np.uint8), nobody)
    assert people.shape == (0, K, 5) and scores.shape == (0,)
    noise = lambda images: [torch.full((2, 1, 2 * K, 128, 128), 1e6)]  # noqa: E731
    people, scores = multiperson(np.zeros((64, 48, 3), np.uint8), noise)
    assert people.shape == (0, K, 5) and scores.shape == (0,)


@pytest.mark.parametrize('square', [True, False])
@pytest.mark.parametrize('size', [(480, 640), (640, 480), (500, 500), (100, 1000)])
def test_frames_hold_the_photo_in_their_middle(configure, size, square):
    height, width = size
    config = configure('train.input_res=512', 'train.output_res=128', f'test.square={square}')
    scales = (2.0, 1.0, 0.5)
    frames = test.input_frames(height, width, config, scales)
    for scale, ((rows, cols), matrix) in zip(scales, frames, strict=True):
        assert rows % 64 == cols % 64 == 0 and max(rows, cols) == 512 * scale
        assert rows == cols or not square
        corners = kpt_affine(np.array([(0, 0), (width, height)]), matrix)
        np.testing.assert_allclose(corners.mean(0), (cols / 2, rows / 2), atol=1e-6)
        assert corners.min() >= -1e-6 and (corners[1] <= (cols + 1e-6, rows + 1e-6)).all()
        assert np.ptp(corners, 0).max() == pytest.approx(512 * scale)
    shares = {(rows * 4 / scale, cols * 4 / scale) for scale, ((rows, cols), _) in
              zip(scales, frames, strict=True)}  # fmt: skip
    assert len(shares) == 1  # outputs of all scales cover one another


def test_import_test_needs_nothing(root, tmp_path):
    """No COCO, no GPU, no checkpoint: in a process of its own, in an empty folder."""
    code = 'import test; print(test.__file__, test.multiperson.__name__, test.load.__name__)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(root / 'test.py'), 'multiperson', 'load']
    assert not list(tmp_path.iterdir())


def test_without_the_mirror_image_one_pass_counts():
    """The maps are those of the photo alone, with one tag to a pixel."""
    pred = torch.rand(1, 34, 16, 16, generator=torch.Generator().manual_seed(0))
    det, tag, first = test.merge([pred], [1.0], K, FLIP)
    assert torch.equal(det, pred[0, :K]) and torch.equal(tag[..., 0], pred[0, K:])
    assert tag.shape == (K, 16, 16, 1) and first == 0
    calls = []

    def func(images):
        calls.append(len(images))
        return [torch.zeros(len(images), 1, 34, 128, 128)]

    func.config = copy.deepcopy(pose.__config__)
    photo = np.zeros((64, 64, 3), np.uint8)
    multiperson(photo, func, 'single')
    func.config['test']['mirror'] = False
    people, scores = multiperson(photo, func, 'single')
    assert calls == [2, 1] and people.shape[1:] == (K, 4) and len(scores) == 0


def test_the_network_has_every_thread_and_what_follows_it_one(monkeypatch):
    """Many small operations: two threads would wait for one another at the end of each."""
    seen = []

    def noted(name, function):
        def call(*args):
            seen.append((name, torch.get_num_threads()))
            return function(*args)

        return call

    monkeypatch.setattr(test, 'refine', noted('refine', test.refine))
    monkeypatch.setattr('utils.multiscale.merge', noted('merge', test.merge))
    scene = noted('network', Scene(np.full((1, K, 3), 60.0), np.zeros((1, 1))))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        multiperson(np.zeros((64, 64, 3), np.uint8), scene)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [('network', 2), ('merge', 1), ('refine', 1)]
