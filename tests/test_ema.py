"""The average of the weights: its figures, and its life through training, save and resume."""

import pytest
import torch

import train
from models.layers import Conv
from tests.faults.common import same
from tests.test_train import start, whole_and_resumed  # noqa: F401 (a fixture)
from utils.ema import Ema


def test_average_is_that_of_a_slow_loop():
    network = Conv(1, 2, bn=True)
    ema = Ema(network, 0.5)
    weight, mean = network.conv.weight.detach().clone(), network.bn.running_mean.clone()
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13), (20, 0.5)):
        with torch.no_grad():
            network.conv.weight += step
            network.bn.running_mean += 2 * step
            network.bn.num_batches_tracked += 1
        ema.update(network, step)
        weight = decay * weight + (1 - decay) * network.conv.weight
        mean = decay * mean + (1 - decay) * network.bn.running_mean
    assert torch.allclose(ema.state_dict['conv.weight'], weight)
    assert torch.allclose(ema.state_dict['bn.running_mean'], mean)
    assert ema.state_dict['bn.num_batches_tracked'] == 4


def test_network_has_its_own_weights_again_also_after_an_error():
    network = Conv(1, 2, bn=True)
    ema = Ema(network, 0.9)
    with torch.no_grad():
        network.conv.weight += 1
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(KeyError), ema.applied(network):
        assert same(network.state_dict(), ema.state_dict)
        raise KeyError
    assert same(network.state_dict(), own)


def test_average_is_what_is_saved_and_a_resume_is_exact(start):  # noqa: F811
    settings = 'train.ema=0.9', 'model.bn=True', 'train.train_iters=9'
    whole, resumed = whole_and_resumed(start, 3, *settings)
    a, b = whole.saved(), resumed.saved()
    for part in ('state_dict', 'own_weights', 'optimizer'):
        assert same(a[part], b[part])
    assert same(a['own_weights'], whole.state.network.state_dict())
    assert not same(a['state_dict'], a['own_weights'])


def test_validation_sees_the_average_and_changes_nothing(start, monkeypatch):  # noqa: F811
    training = start('run', 'train.ema=0.99', 'train.eval_epochs=1')
    validate, seen = train.validate, []

    def look(model, *args):
        seen.append({k: v.clone() for k, v in training.state.network.state_dict().items()})
        return validate(model, *args)

    monkeypatch.setattr(train, 'validate', look)
    training.run()
    saved = training.saved()
    assert same(seen[0], training.state.ema.state_dict) and same(seen[0], saved['state_dict'])
    assert same(saved['own_weights'], training.state.network.state_dict())
    assert not same(saved['own_weights'], saved['state_dict'])


def test_average_can_be_begun_and_given_up(start):  # noqa: F811
    start('run', 'train.train_iters=9').run_steps(2)
    begun = start('run', 'train.ema=0.5', go_on=True)
    assert same(begun.state.ema.state_dict, begun.state.network.state_dict())
    begun.run_steps(2)
    given_up = start('run', 'train.ema=0.0', go_on=True)
    assert given_up.state.ema is None
    assert same(given_up.state.network.state_dict(), begun.state.network.state_dict())


def test_a_skipped_step_is_not_averaged(start):  # noqa: F811
    state = start('run', 'train.ema=0.5').state
    with torch.no_grad():
        state.network.outs[0].conv.bias += 1
    before = {name: value.clone() for name, value in state.ema.state_dict.items()}
    state.advance(2, applied=False)
    assert same(state.ema.state_dict, before)
    state.advance(2, applied=True)
    assert not same(state.ema.state_dict, before)
