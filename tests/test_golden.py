"""The figures of the original program, and the names and shapes of its weights."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from data.coco_pose.dp import GenerateHeatmap, KeypointsRef
from models.posenet import PoseNet
from task import pose
from task.loss import AELoss, HeatmapLoss
from test import load, multiperson, refine
from utils.affine import get_transform, kpt_affine
from utils.group import HeatmapParser

THRESHOLDS = ('detection_val', 'tag_val', 'max_num_people', 'margins', 'mirror', 'tie_break')


def shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def test_get_transform_and_kpt_affine(golden):
    figures = np.load(golden('affine.npz'))
    for i, (x, y, scale, res, rot) in enumerate(figures['center_scale_res_rot']):
        matrix = get_transform((x, y), scale, (int(res), int(res)), rot)
        np.testing.assert_allclose(matrix, figures['matrix'][i], rtol=1e-9, atol=1e-9)
        moved = kpt_affine(figures['points'][i], matrix[:2])
        np.testing.assert_allclose(moved, figures['moved'][i], rtol=1e-9, atol=1e-9)


def test_targets(golden):
    figures = np.load(golden('targets.npz'))
    heatmaps = GenerateHeatmap(128, 17)(figures['keypoints'])
    np.testing.assert_allclose(heatmaps, figures['heatmaps'], rtol=0, atol=1e-6)
    refs = KeypointsRef(30, 17)(figures['keypoints'], 128)
    assert refs.dtype == np.int64
    np.testing.assert_array_equal(refs, figures['keypoint_refs'])


def test_tag_loss_and_its_gradients(golden):
    figures = np.load(golden('loss.npz'))
    keypoints = torch.from_numpy(figures['keypoints'])
    tags = torch.from_numpy(figures['tags']).requires_grad_()
    for name, loss in zip(('push', 'pull'), AELoss()(tags, keypoints), strict=True):
        np.testing.assert_allclose(loss.detach(), figures[name], rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(loss.sum(), tags, retain_graph=True)
        np.testing.assert_allclose(gradient, figures[f'{name}_grad'], rtol=1e-5, atol=1e-5)


def test_heatmap_loss(golden):
    figures = np.load(golden('loss.npz'))
    inputs = [torch.from_numpy(figures[name]) for name in ('pred', 'gt', 'masks')]
    np.testing.assert_allclose(
        HeatmapLoss()(*inputs), figures['heatmap_loss'], rtol=1e-5, atol=1e-5
    )


def test_network_predictions(golden):
    figures = np.load(golden('posenet.npz'))
    network = PoseNet(2, 16, 68, False, 8).eval()
    weights = {k[3:]: torch.from_numpy(figures[k]).float() for k in figures if k.startswith('sd/')}
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        preds = network(torch.from_numpy(figures['imgs']))
    assert preds.shape == (2, 2, 68, 16, 32)
    np.testing.assert_allclose(preds, figures['preds'], rtol=1e-4, atol=1e-4)


def test_names_and_shapes_of_the_weights(golden):
    layout = json.loads(golden('state_dict_layout.json').read_text())
    with torch.device('meta'):  # the default network has no room in a test
        default, small = PoseNet(), PoseNet(**layout['small_bn']['args'])
    assert shapes(default) == layout['default']
    assert sum(p.numel() for p in default.parameters()) == 138_893_840
    assert shapes(small) == layout['small_bn']['layout']


@pytest.mark.parametrize('scene', range(9))
def test_grouping(golden, scene):
    figures = np.load(golden('group.npz'))
    assert int(figures['scenes']) == 9
    det, tag = figures[f'det{scene}'][None], figures[f'tag{scene}'][None].astype(np.float32)
    parser = HeatmapParser(detection_val=0.1)
    for name, adjust_points in (('matched', False), ('people', True)):
        people = parser.parse(det, tag, adjust_points=adjust_points)[0]
        wanted = figures[f'{name}{scene}']
        assert len(people) == len(wanted)
        if len(wanted) > 0:
            assert people.shape == wanted.shape and people.dtype == np.float32
            np.testing.assert_allclose(people, wanted, rtol=1e-4, atol=1e-4)
    for person, wanted in zip(people, figures[f'refined{scene}'], strict=True):
        refined = refine(det[0], tag[0], person)
        np.testing.assert_array_equal(refined[:, 2] > 0, wanted[:, 2] > 0)
        np.testing.assert_allclose(refined[:, :2], wanted[:, :2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('scene', range(10))
def test_grouping_of_a_trained_network(golden, scene):
    """Its tags lie close together: most assignments have several of equal cost."""
    figures = np.load(golden('trained/group.npz'))
    assert int(figures['scenes']) == 10
    people = HeatmapParser(detection_val=0.1).parse(
        figures[f'det{scene}'][None], figures[f'tag{scene}'][None]
    )[0]
    np.testing.assert_allclose(people, figures[f'people{scene}'], rtol=1e-4, atol=1e-4)


@pytest.fixture
def trained(work, golden):
    """A network trained on drawn people, at the published thresholds in float32."""
    folder = work / 'exp' / 'trained'
    folder.mkdir(parents=True)
    shutil.copy(golden('trained/checkpoint.pth.tar'), folder)
    saved = torch.load(folder / 'checkpoint.pth.tar', map_location='cpu', weights_only=True)
    config = saved['config']
    (folder / 'config.json').write_text(json.dumps(config))
    published = [f'test.{key}={pose.__config__["test"][key]}' for key in THRESHOLDS]
    return load('trained', settings=[*published, 'test.precision=fp32'])


@pytest.mark.parametrize('mode', ['single', 'multi'])
def test_people_of_a_trained_network(golden, trained, mode):
    """All people of all pictures, to the last pair."""
    figures = np.load(golden('trained/people.npz'))
    scales = {'single': [1.0], 'multi': [2.0, 1.0, 0.5]}[mode]
    assert len(figures['ids']) == 12
    for number in figures['ids']:
        photo = cv2.imread(str(golden(f'trained/{number}.jpg')), cv2.IMREAD_COLOR_RGB)
        people, scores = multiperson(photo, trained, scales=scales)
        wanted = figures[f'{mode}{number}']
        assert people.shape == wanted.shape
        np.testing.assert_allclose(people[..., :2], wanted[..., :2], rtol=0, atol=0.05)
        np.testing.assert_allclose(scores, figures[f'{mode}_scores{number}'], rtol=0, atol=1e-3)


@pytest.fixture
def published(foreign_run):
    """The small likeness of the published checkpoint, loaded strictly into its own network."""
    settings = foreign_run('pretrained')
    return load('pretrained', settings=[*settings, 'test.precision=fp32'])


def test_the_published_format_loads(published, golden):
    sizes = json.loads(golden('checkpoint_network.json').read_text())
    assert shapes(published.network) == shapes(PoseNet(**sizes))
    saved = torch.load(golden('checkpoint.pth.tar'), map_location='cpu', weights_only=True)
    assert saved['epoch'] == 7
    for name, value in saved['state_dict'].items():
        loaded = published.network.state_dict()[name.removeprefix('model.module.')]
        torch.testing.assert_close(loaded, value, rtol=0, atol=0)
    assert not published.network.training


@pytest.mark.parametrize('mode', ['single', 'multi'])
@pytest.mark.parametrize('crowd', [0, 1, 2])
def test_people_of_a_photo(golden, published, crowd, mode):
    """Everybody scoring over 0.1, joints filled in included."""
    photo = cv2.imread(str(golden(f'crowd{crowd}.png')), cv2.IMREAD_COLOR_RGB)
    people, scores = multiperson(photo, published, mode)
    figures = np.load(golden('multiperson.npz'))
    wanted_scores = figures[f'scores_{mode}{crowd}']
    sure = wanted_scores > 0.1
    assert people.shape[1:] == (17, 5) and scores.shape == (len(people),)
    assert (scores > 0.1 + 1e-3).sum() <= sure.sum() <= (scores > 0.1 - 1e-3).sum()
    for person, score in zip(figures[f'people_{mode}{crowd}'][sure], wanted_scores[sure],
                             strict=True):  # fmt: skip
        gaps = np.abs(people[:, :, :2] - person[:, :2]).max((1, 2))
        assert gaps.min() < 0.05
        assert scores[gaps.argmin()] == pytest.approx(score, abs=1e-3)
