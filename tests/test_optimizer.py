"""Muon: what it does to kernels, that the rest is Adam's, and its life through save and resume."""

import json

import pytest
import torch

from models.layers import Conv
from tests.faults.common import same
from tests.test_train import start, whole_and_resumed  # noqa: F401 (a fixture)
from utils.errors import UserError
from utils.optimizer import RMS, Muon, is_kernel, make_optimizer, orthogonal


@pytest.mark.parametrize('shape', [(3, 8, 40), (2, 40, 8), (1, 8, 8)])
def test_all_directions_of_a_step_count_alike(shape):
    """Of matrices whose own singular values differ by a factor of 16, whatever their scale."""
    values = torch.linspace(0.06, 1, 8)
    left, _ = torch.linalg.qr(torch.randn(shape[0], shape[1], 8, generator=torch.manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(shape[0], shape[2], 8))
    matrices = 1e-4 * left * values @ right.mT
    made = orthogonal(matrices)
    found = torch.linalg.svdvals(made) / RMS / max(shape[1:]) ** 0.5
    assert found.shape == (shape[0], 8)
    assert found.min() > 0.6 and found.max() < 1.3
    # The directions themselves stay: the nearest orthogonal matrix is left @ right.T.
    nearest = RMS * max(shape[1:]) ** 0.5 * left @ right.mT
    alike = torch.nn.functional.cosine_similarity(made.flatten(1), nearest.flatten(1))
    assert alike.min() > 0.97


def test_no_gradient_is_no_step():
    assert orthogonal(torch.zeros(2, 3, 5)).abs().max() == 0


def test_a_kernel_follows_its_momentum_ahead():
    conv = torch.nn.Conv2d(2, 3, 3, bias=False)
    muon, kernel = Muon(conv.parameters(), lr=0.5), conv.weight
    momentum = torch.zeros(3, 18)
    for seed in range(3):
        before = kernel.detach().clone()
        grad = torch.randn(kernel.shape, generator=torch.manual_seed(seed))
        kernel.grad = grad.clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * grad.view(3, 18)
        expected = orthogonal((0.95 * momentum + 0.05 * grad.view(3, 18))[None])
        assert torch.allclose((before - kernel).view(1, 3, 18), 0.5 * expected, atol=1e-6)
    assert muon.state[kernel].keys() == {'step', 'momentum'}


def test_kernels_of_one_shape_do_not_mix():
    a, b = (torch.nn.Parameter(torch.zeros(2, 3, 3, 3)) for _ in range(2))
    muon = Muon([a, b], lr=1.0)
    a.grad = torch.randn(a.shape)
    b.grad = None  # as of a layer that the loss does not reach
    muon.step()
    assert a.abs().max() > 0 and b.abs().max() == 0 and not muon.state[b]


def test_all_else_is_adams():
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(Conv(3, 4, 3, bn=True), Conv(4, 5, 1)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    adam, muon = (
        make_optimizer(net, {'optimizer': name})
        for net, name in zip(nets, ('adam', 'muon'), strict=True)
    )
    assert type(adam) is torch.optim.Adam and type(muon) is Muon
    for _ in range(3):
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        adam.step()
        muon.step()
    kernels = 0
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        kernels += is_kernel(p)
        assert torch.equal(p, q) != is_kernel(p)
    assert kernels == 1


def test_a_resume_is_exact(start):  # noqa: F811
    settings = 'train.optimizer=muon', 'model.bn=True', 'train.train_iters=9'
    a, b = (training.saved() for training in whole_and_resumed(start, 3, *settings))
    for part in ('state_dict', 'optimizer'):
        assert same(a[part], b[part])
    assert any('momentum' in state for state in a['optimizer']['state'].values())


def test_a_run_does_not_change_its_optimizer(start):  # noqa: F811
    start('run').run_steps(1)
    with pytest.raises(UserError, match='holds no training state.*momentum'):
        start('run', 'train.optimizer=muon', go_on=True)


def test_a_run_from_before_there_was_a_choice_goes_on_with_adam(start):  # noqa: F811
    training = start('run')
    training.run_steps(1)
    run = training.report.run
    config = json.loads(run.config_path.read_text())
    config['run']['task'] = 'quickstart'  # whose optimizer is another one today
    del config['train']['optimizer'], config['test']['subpixel']
    run.config_path.write_text(json.dumps(config))
    config = run.config('pose')
    assert config['train']['optimizer'] == 'adam' and config['test']['subpixel'] is False
