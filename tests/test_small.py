"""What the task `small` adds: masked people, aimed squares, wider networks; loading weights."""

import copy
import json

import numpy as np
import pytest
import torch

from data.coco_pose import dp
from data.coco_pose.augment import jittered
from data.coco_pose.splits import open_splits
from task import pose, small
from task.pose import make_network
from utils.config import complete
from utils.errors import UserError
from utils.weights import load_network, widen


def test_size_of_the_network():
    assert sum(p.numel() for p in small.make_network(small.__config__).parameters()) < 4e6


def test_the_config_of_an_earlier_version_is_read():
    """A key that is no more is left out, another that was never there is an error."""
    saved = copy.deepcopy(small.__config__) | {'run': {'task': 'small'}}
    saved['train']['joint_weight'] = 4.0
    assert 'joint_weight' not in complete(saved)['train']
    saved['train']['joint_weights'] = 4.0
    with pytest.raises(UserError, match='train.joint_weights: no such key'):
        complete(saved)


def test_aimed_squares_hold_the_person_and_stay_within_the_photo():
    ranges = pose.__config__['augmentation'] | {'aim': 1.0, 'scale': [0.4, 0.6], 'shift': 0.0}
    people = np.array([[[280, 20, 2], [300, 60, 2], [0, 0, 0]]], np.float32)
    rng = np.random.default_rng(0)
    for _ in range(100):
        center, scale, _ = jittered(200, 320, ranges, rng, people)
        half = 100 * scale
        assert half <= center[0] <= 320 - half and center[0] + half >= 300
        assert min(half, 100) <= center[1] <= max(200 - half, 100) and center[1] - half <= 20


def test_people_without_labels_are_masked_but_nobody_with_labels(make_coco, configure):
    coco = make_coco(people=(1,), size=(80, 100))
    content = json.loads(coco.annotations.read_text())
    person = next(a for a in content['annotations'] if not a['iscrowd'])
    unlabelled = {'num_keypoints': 0, 'keypoints': [0] * 51, 'bbox': [0, 0, 100, 80], 'id': 99}
    content['annotations'] = [person, person | unlabelled]
    coco.annotations.write_text(json.dumps(content))
    masks = []
    for choice in ('False', 'True'):
        config = configure(*coco.settings, f'train.mask_unlabelled={choice}', 'train.augment=False')
        train, _ = open_splits(config['data'])
        masks.append(dp.Dataset(train, config['train'])[(0, 0)]['masks'] > 0)
    # The photo's 80 rows are 13 of 16; of them the labelled person's own box is left.
    assert masks[0].sum() > 2 * masks[1].sum() > 0
    assert not (masks[1] & ~masks[0]).any()


@pytest.mark.parametrize('wider', [{'increase': 8}, {'inp_dim': 12, 'stem': [6, 8, 12]}])
def test_a_wider_network_answers_as_the_narrower_did(configure, wider):
    config = configure('model.bn=True', 'model.nstack=2')
    narrow = make_network(config).network.eval()
    config['model'] |= wider
    config['train']['seed'] = 1
    wide = make_network(config).network.eval()
    imgs = torch.rand(1, 64, 64, 3)
    assert load_network(wide, narrow.state_dict(), 'file', any_outputs=True) == []
    assert torch.allclose(wide(imgs), narrow(imgs), atol=1e-5)
    back = widen(wide.state_dict(), narrow.state_dict())  # nothing is cut off
    assert all(torch.equal(back[name], value) for name, value in wide.state_dict().items())
    with pytest.raises(UserError, match='shape'):
        load_network(narrow, wide.state_dict(), 'file', any_outputs=True)


def test_weights_become_the_networks_without_a_copy(configure):
    """A resume of the default network holds its 0.5 GB once; its layout is that of the network."""
    config = configure('model.bn=True')
    network, other = make_network(config).network, make_network(config).network
    saved = other.state_dict()
    load_network(network, saved, 'file')
    assert all(t.data_ptr() == saved[k].data_ptr() for k, t in network.state_dict().items())
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in saved.items()}
    load_network(network, {k: v.contiguous() for k, v in halves.items()}, 'file')
    for name, value in network.state_dict().items():
        assert (value.dtype, value.stride()) == (saved[name].dtype, saved[name].stride())
    assert all(param.requires_grad for param in network.parameters())
