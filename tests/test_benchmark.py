"""What the benchmark compares gives the same answers: its references and the program's own way."""

import copy

import numpy as np
import pytest
import torch

import test
from task import pose
from tests import benchmark, references


def test_samples(tmp_path):
    config = copy.deepcopy(pose.__config__)
    split = benchmark.photo_split(tmp_path)
    dataset = benchmark.dp.Dataset(split, config['train'], config['augmentation'])
    mirrored = set()
    for turn in range(4):
        sample = dataset[turn, 0]
        rng = np.random.default_rng((0, turn, 0))
        people = split.keypoints[split.people(0)]
        image, mask, heatmaps = references.sample(split.path(0), people, config, rng)
        assert np.abs(image - sample['imgs']).mean() < 1e-3
        assert (mask == sample['masks']).mean() > 0.99 and 0 < mask.mean() < 1
        assert np.abs(heatmaps - sample['heatmaps']).max() < 0.012  # a window ends at 0.011
        assert heatmaps.max() == 1
        mirrored.add(bool(np.random.default_rng((0, turn, 0)).random(5)[4] < 0.5))
    assert mirrored == {True, False}


@pytest.mark.parametrize('people', [0, 1, 7])
def test_tag_losses(people):
    rng = torch.Generator().manual_seed(people)
    tags = torch.randn(2, 17 * 64, generator=rng, dtype=torch.float64)
    keypoints = torch.zeros(2, 30, 17, 2, dtype=torch.int64)
    keypoints[:, :people, :, 0] = torch.randint(17 * 64, (2, people, 17), generator=rng)
    keypoints[:, :people, :, 1] = torch.randint(2, (2, people, 17), generator=rng)
    ours = benchmark.tag_loss(tags, keypoints)
    plain = benchmark.reference_tag_loss(tags, keypoints)
    assert float(ours) == pytest.approx(float(plain), rel=1e-12)
    assert (float(ours) > 0) == (people > 0)


@pytest.mark.parametrize('mode', ['single', 'multi'])
def test_people(mode):
    config = copy.deepcopy(pose.__config__)
    scales = config['test']['scales'][mode]
    frames = test.input_frames(512, 512, config, scales)
    preds = benchmark.drawn_outputs(benchmark.drawn_people(6), [res[0] for res, _ in frames])
    people, *_ = test.find_people(preds, frames, (512, 512), scales, config)
    plain = references.find_people(preds, scales, config['test'])
    assert len(people) == len(plain) == 6
    R = 512 * max(scales) / 4
    for person, found in zip(people, plain, strict=True):
        # The reference leaves joints at their pixel: half a pixel and a quarter, in each direction.
        gap = np.abs(person[:, :2] * R / 512 - found[:, :2] - 0.5)
        assert gap.max() <= 0.26 and np.abs(person[:, 2] - found[:, 2]).max() < 1e-3
