"""The losses against slow loops written from their formulas, and at their edges."""

import numpy as np
import pytest
import torch

from task.loss import AELoss, HeatmapLoss
from task.pose import PoseTask
from tests import references

K, R = 5, 8  # joints, and the side of the maps


def draw_keypoints(counts, rng, max_num_people=30):
    """References (B, P, K, 2) of `counts` people per image, of whose joints a third is missing.

    Every third person lacks all joints but one, and slots are not filled from the front.
    """
    keypoints = np.zeros((len(counts), max_num_people, K, 2), np.int64)
    for image, count in zip(keypoints, counts, strict=True):
        for p, slot in enumerate(sorted(rng.choice(max_num_people, count, replace=False))):
            visible = rng.random(K) < 0.67
            visible[rng.integers(K)] = True
            if p % 3 == 2:
                visible = np.arange(K) == rng.integers(K)
            joints = np.flatnonzero(visible)
            image[slot, : len(joints), 0] = joints * R * R + rng.integers(R * R, size=len(joints))
            image[slot, : len(joints), 1] = 1
    return torch.from_numpy(keypoints)


@pytest.mark.parametrize('shape', [(), (1,), (3,)], ids=['flat', 'D=1', 'D=3'])
def test_tag_losses_equal_a_slow_loop(shape):
    counts = (0, 1, 2, 5, 30, 3)
    keypoints = draw_keypoints(counts, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    tags = torch.randn(len(counts), K * R * R, *shape, dtype=torch.float64, generator=generator)
    push, pull = AELoss()(tags, keypoints)
    assert push.shape == pull.shape == (len(counts),)
    for b in range(len(counts)):
        wanted = references.tag_losses(tags[b].reshape(K * R * R, -1), keypoints[b])
        for ours, slow in zip((push[b], pull[b]), wanted, strict=True):
            assert ours.item() == pytest.approx(slow.item(), rel=1e-12)
    assert (push[2:] > 0).all() and (pull[1:] > 0).all()


def test_heatmap_loss_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    pred, gt = rng.normal(size=(2, 3, K, R, R))
    masks = (rng.random((3, R, R)) < 0.7).astype(float)
    loss = HeatmapLoss()(*(torch.from_numpy(values) for values in (pred, gt, masks)))
    assert loss.shape == (3,)
    for b in range(3):
        total = 0.0
        for k in range(K):
            for y in range(R):
                for x in range(R):
                    total += (pred[b, k, y, x] - gt[b, k, y, x]) ** 2 * masks[b, y, x]
        assert loss[b].item() == pytest.approx(total / (K * R * R), rel=1e-12)


@pytest.mark.parametrize('shape', [(), (2,)], ids=['flat', 'D=2'])
def test_gradients_of_the_tag_losses(shape):
    keypoints = draw_keypoints((0, 1, 2, 4), np.random.default_rng(1), max_num_people=6)
    generator = torch.Generator().manual_seed(1)
    tags = torch.randn(4, K * R * R, *shape, dtype=torch.float64, generator=generator)
    tags = tags.requires_grad_()
    assert torch.autograd.gradcheck(lambda tags: AELoss()(tags, keypoints), tags, fast_mode=True)


def test_gradients_of_the_heatmap_loss():
    generator = torch.Generator().manual_seed(1)
    pred, gt = torch.randn(2, 2, K, R, R, dtype=torch.float64, generator=generator)
    masks = (torch.rand(2, R, R, generator=generator) < 0.5).double()
    loss = lambda pred: HeatmapLoss()(pred, gt, masks)  # noqa: E731
    assert torch.autograd.gradcheck(loss, pred.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize('count', [0, 1])
def test_nobody_to_push_or_pull_is_an_exact_zero(count):
    """In the value and in the gradient; a single person is pulled, but pushed by nobody."""
    keypoints = draw_keypoints((count, count), np.random.default_rng(2))
    tags = 1e4 * torch.randn(2, K * R * R, generator=torch.Generator().manual_seed(2))
    tags.requires_grad_()
    push, pull = AELoss()(tags, keypoints)
    (gradient,) = torch.autograd.grad(push.sum(), tags, retain_graph=True)
    assert not push.any() and not gradient.any()
    (gradient,) = torch.autograd.grad(pull.sum(), tags)
    assert bool(pull.any()) == bool(gradient.any()) == (count == 1)


def test_a_single_joint_is_at_its_own_mean():
    keypoints = torch.zeros(1, 30, K, 2, dtype=torch.int64)
    keypoints[0, 4, 0] = torch.tensor([3 * R * R + 7, 1])
    tags = torch.randn(1, K * R * R, generator=torch.Generator().manual_seed(0)).requires_grad_()
    push, pull = AELoss()(tags, keypoints)
    (push + pull).sum().backward()
    assert push.item() == pull.item() == 0 and not tags.grad.any()


def test_only_pixels_of_joints_have_a_gradient():
    """Unused slots refer to pixel 0 of joint 0, which must not feel it."""
    keypoints = draw_keypoints((3,), np.random.default_rng(3))
    keypoints[..., 0] += (keypoints[..., 0] == 0) & (keypoints[..., 1] == 1)
    tags = torch.randn(1, K * R * R, generator=torch.Generator().manual_seed(3)).requires_grad_()
    push, pull = AELoss()(tags, keypoints)
    (push + pull).sum().backward()
    used = keypoints[..., 0][keypoints[..., 1] == 1].unique()
    assert set(tags.grad[0].nonzero().flatten().tolist()) <= set(used.tolist())
    assert tags.grad[0, 0] == 0


def test_images_do_not_touch_one_another():
    keypoints = draw_keypoints((2, 5, 30), np.random.default_rng(4))
    tags = torch.randn(3, K * R * R, generator=torch.Generator().manual_seed(4))
    together = torch.stack(AELoss()(tags, keypoints))
    alone = [torch.stack(AELoss()(tags[b : b + 1], keypoints[b : b + 1])) for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone, 1))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_16_bit_input_is_computed_in_float32(dtype):
    """The same as of the rounded values in float32, to the last bit."""
    keypoints = draw_keypoints((2, 5, 30), np.random.default_rng(5))
    generator = torch.Generator().manual_seed(5)
    tags = torch.randn(3, K * R * R, generator=generator).to(dtype)
    for loss, exact in zip(
        AELoss()(tags, keypoints), AELoss()(tags.float(), keypoints), strict=True
    ):
        assert loss.dtype == torch.float32 and torch.equal(loss, exact)
    pred, gt = torch.randn(2, 3, K, R, R, generator=generator)
    masks = torch.ones(3, R, R)
    loss = HeatmapLoss()(pred.to(dtype), gt, masks)
    exact = HeatmapLoss()(pred.to(dtype).float(), gt, masks)
    assert loss.dtype == torch.float32 and torch.equal(loss, exact)


def test_autocast_leaves_the_losses_alone():
    keypoints = draw_keypoints((2, 5), np.random.default_rng(8))
    tags = torch.randn(2, K * R * R, generator=torch.Generator().manual_seed(8))
    exact = torch.stack(AELoss()(tags, keypoints))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(torch.stack(AELoss()(tags, keypoints)), exact)


def test_masked_pixels_have_no_gradient():
    generator = torch.Generator().manual_seed(6)
    pred, gt = torch.randn(2, 2, K, R, R, generator=generator)
    masks = (torch.rand(2, R, R, generator=generator) < 0.5).float()
    pred.requires_grad_()
    HeatmapLoss()(pred, gt, masks).sum().backward()
    masked = (masks == 0)[:, None].expand_as(pred)
    assert not pred.grad[masked].any() and pred.grad[~masked].all()


def test_every_stack_has_its_own_losses():
    """PoseTask: (B, S) by name, of channels K heatmaps and K tags; what follows has no loss."""
    generator = torch.Generator().manual_seed(7)
    preds = torch.randn(2, 3, 2 * K + 4, R, R, generator=generator).requires_grad_()
    keypoints = draw_keypoints((2, 4), np.random.default_rng(7))
    heatmaps = torch.rand(2, K, R, R, generator=generator)
    masks = torch.ones(2, R, R)
    task = PoseTask(torch.nn.Identity())
    losses = task(preds, masks, keypoints, heatmaps, torch.float32)
    assert set(losses) == {'detection', 'push', 'pull'}
    for s in range(3):
        detection = HeatmapLoss()(preds[:, s, :K], heatmaps, masks)
        push, pull = AELoss()(preds[:, s, K : 2 * K].flatten(1), keypoints)
        for name, wanted in (('detection', detection), ('push', push), ('pull', pull)):
            torch.testing.assert_close(losses[name][:, s], wanted)
    sum(loss.sum() for loss in losses.values()).backward()
    assert not preds.grad[:, :, 2 * K :].any() and preds.grad[:, :, :K].all()
