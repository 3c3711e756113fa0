"""The step and the loop: each setting does what it says, and each figure is of what it names."""

import copy
import json
import re
import sys

import pytest
import torch

import train
from tests.faults.common import same
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.stop import Stopper

LR = 1e-3


@pytest.fixture
def prepare(make_coco, work, tiny, monkeypatch):
    """prepare(setting, ...): the model, loaders, State and Report of a new run on four photos."""
    data, runs = make_coco(people=(1, 2, 3, 2)), iter(range(99))

    def make(*settings):
        chosen = [*data.settings, *tiny, *settings]
        command = ['train.py', '-e', f'run{next(runs)}', '--set', *chosen]
        monkeypatch.setattr(sys, 'argv', command)
        return train.prepare(train.parse_args())

    return make


def step(prepared, batch=None, dtype=torch.float32):
    """One step; what train_step returns."""
    model, loaders, state, _ = prepared
    model.train()
    batch = batch or next(iter(loaders['train']))
    tools = state.optimizer, state.scaler
    return train.train_step(model, *tools, batch, LR, state.config['train'], dtype)


def gradients(prepared, *args):
    step(prepared, *args)
    return torch.cat([param.grad.flatten() for param in prepared[0].parameters()])


def everything(prepared):
    """All that a step changes: weights, BatchNorm's statistics and counts, Adam's state."""
    model, _, state, _ = prepared
    return copy.deepcopy([model.state_dict(), state.optimizer.state_dict()['state']])


def run(prepared):
    """Trains to the end; the rows of metrics.jsonl."""
    model, loaders, state, report = prepared
    train.train(model, loaders, state, report, Stopper())
    lines = (report.run.folder / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- the step ---


def test_the_objective_weighs_the_losses(prepare):
    a, b, both = (
        gradients(prepare(*(f'train.loss_weights.{n}={w}' for n, w in weights.items())))
        for weights in (
            {'detection': 1.0, 'push': 0.0, 'pull': 0.0},
            {'detection': 0.0, 'push': 1.0, 'pull': 0.5},
            {'detection': 2.0, 'push': 3.0, 'pull': 1.5},
        )
    )
    assert a.norm() > 0 and b.norm() > 0
    assert torch.allclose(both, 2 * a + 3 * b, rtol=1e-4, atol=1e-7)


def test_clip_norm_scales_gradients_down_to_it(prepare):
    free = gradients(prepare())
    limit = free.norm().item() / 4
    clipped = gradients(prepare(f'train.clip_norm={limit}'))
    assert torch.allclose(clipped, free / 4, rtol=1e-4)
    wide = gradients(prepare(f'train.clip_norm={8 * limit}'))
    assert torch.equal(wide, free)


def spoil_loss(prepared, batch):
    batch['heatmaps'][0, 0] = float('nan')


def spoil_gradients(prepared, batch):
    """The loss stays finite: of the square root of 0 only the slope is infinite."""
    conv = prepared[0].network.outs[0].conv
    conv.register_forward_hook(lambda module, inputs, output: output + (output * 0).sqrt())


@pytest.mark.parametrize('spoil', [spoil_loss, spoil_gradients])
def test_a_skipped_step_changes_nothing(prepare, spoil):
    prepared = prepare('train.on_nonfinite=skip', 'model.bn=True')
    *_, applied = step(prepared)
    assert applied
    before = everything(prepared)
    batch = next(iter(prepared[1]['train']))
    spoil(prepared, batch)
    losses, norm, applied = step(prepared, batch)
    assert not applied and not norm.isfinite()
    assert losses.isfinite().all() == (spoil is spoil_gradients)
    assert same(before, everything(prepared))


@pytest.mark.parametrize('spoil', [spoil_loss, spoil_gradients])
@pytest.mark.parametrize('setting', ['stop', 'skip'])
def test_what_is_not_finite_stops_the_run_before_a_save(prepare, monkeypatch, spoil, setting):
    """At once, or with 'skip' after ten steps in a row, with the names of step and images."""
    prepared = prepare(f'train.on_nonfinite={setting}', 'train.train_iters=20')
    model, loaders, state, report = prepared
    train.save(state, report)
    before = report.run.checkpoint().read_bytes()
    batches = [next(iter(loaders['train'])) for _ in range(20)]
    for batch in batches if spoil is spoil_loss else []:
        spoil(prepared, batch)
    if spoil is spoil_gradients:
        spoil(prepared, None)
    with pytest.raises(UserError) as error:
        run((model, loaders | {'train': batches}, state, report))
    what = 'losses' if spoil is spoil_loss else 'gradients'
    number = 1 if setting == 'stop' else 11
    assert f'{what} are not finite at step {number}: detection ' in str(error.value)
    assert 'images [9000' in str(error.value)
    assert ('(11 steps in a row)' in str(error.value)) == (setting == 'skip')
    assert report.run.checkpoint().read_bytes() == before
    log = (report.run.folder / 'log').read_text()
    assert log.count('; step skipped') == (10 if setting == 'skip' else 0)


@pytest.mark.parametrize('twice', [False, True])
def test_checkpoint_stacks_computes_activations_twice(prepare, twice):
    prepared = prepare(f'train.checkpoint_stacks={twice}', 'model.nstack=2')
    calls = []
    prepared[0].network.outs[0].register_forward_hook(lambda *_: calls.append(1))
    step(prepared)
    assert len(calls) == 1 + twice


def test_float16_skips_what_exceeds_its_range_and_goes_on_with_a_lower_factor(prepare, capsys):
    """Without a word, for the scaler looks for the greatest factor that does not."""
    settings = 'train.precision=fp16', 'train.train_iters=4', 'train.epochs=2', 'model.bn=True'
    prepared = prepare(*settings)
    _, _, state, report = prepared
    state.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**40)
    before = everything(prepared)
    assert not step(prepared, dtype=torch.float16)[-1] and same(before, everything(prepared))
    factor = state.scaler.get_scale()
    assert factor == 2.0**39
    rows = run(prepared)
    assert state.scaler.get_scale() == factor / 2 ** rows[0]['skipped'] / 2 ** rows[1]['skipped']
    assert rows[0]['skipped'] == 4 and 'warning' not in capsys.readouterr().err
    # A run that goes on has the factor that it had.
    saved = read_checkpoint(report.run.checkpoint())
    other = prepare(*settings)[2]
    assert other.scaler.get_scale() != state.scaler.get_scale()
    other.load(saved, report.run.checkpoint())
    assert other.scaler.get_scale() == state.scaler.get_scale()
    other = prepare(*settings, 'train.precision=fp32')[2]
    other.load(saved, report.run.checkpoint())  # which has no use for it
    assert not other.scaler.is_enabled()


def test_gradients_in_float16_are_those_of_float32(prepare):
    exact = gradients(prepare())
    close = gradients(prepare('train.precision=fp16'), None, torch.float16)
    assert 0 < (close - exact).norm() < 0.05 * exact.norm()


def test_float16_does_not_hide_a_loss_that_is_not_finite(prepare):
    """No factor of the scaler helps there: with 'stop' it stops the run as in any precision."""
    prepared = prepare('train.precision=fp16')
    batch = next(iter(prepared[1]['train']))
    spoil_loss(prepared, batch)
    prepared[1]['train'] = [batch] * 3
    with pytest.raises(UserError, match='losses are not finite at step 1: .* leaves out single'):
        run(prepared)


def test_a_compiled_network_trains_alike_and_saves_plain_names(prepare, monkeypatch):
    """Compiled by a backend that needs no compiler of C++."""
    compiled, compile_it = [], torch.nn.Module.compile

    def compile_eagerly(module):
        compile_it(module, backend=lambda graph, _: compiled.append(graph) or graph)

    monkeypatch.setattr(torch.nn.Module, 'compile', compile_eagerly)
    plain, other = prepare(), prepare('train.compile=True')
    assert not compiled
    assert torch.allclose(gradients(other), gradients(plain), rtol=1e-4, atol=1e-8)
    assert compiled
    assert other[2].to_dict()['state_dict'].keys() == plain[2].to_dict()['state_dict'].keys()


# --- the loop ---


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_the_network_trains_in_the_precision_that_is_set(prepare, precision):
    prepared, seen = prepare(f'train.precision={precision}'), {True: set(), False: set()}
    network = prepared[0].network
    network.outs[0].conv.register_forward_hook(
        lambda module, inputs, output: seen[module.training].add(output.dtype)
    )
    run(prepared)
    types = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    expected = {types[precision]}
    assert seen == {True: expected, False: expected}


def test_best_is_written_at_the_best_epoch_alone(prepare, monkeypatch):
    prepared = prepare('train.epochs=3', 'train.train_iters=1', 'train.eval_epochs=1')
    report, aps, steps = prepared[3], iter([0.1, 0.3, 0.2]), []
    monkeypatch.setattr(train, 'measure_ap', lambda *_: ({'AP': next(aps)}, {}))
    save = report.run.save

    def note(saved, which='checkpoint'):
        steps.append((which, saved['step']))
        save(saved, which)

    monkeypatch.setattr(report.run, 'save', note)
    run(prepared)
    # Before each AP, which may fail, and at the end.
    assert [number for which, number in steps if which == 'checkpoint'] == [1, 2, 3, 3]
    assert [number for which, number in steps if which == 'best'] == [1, 2]
    best = read_checkpoint(report.run.checkpoint('best'))
    assert not best.keys() & {'optimizer', 'own_weights', 'random'}
    assert report.run.checkpoint('best').stat().st_size < report.run.checkpoint().stat().st_size / 2
    latest = read_checkpoint(report.run.checkpoint())
    assert not same(best['state_dict'], latest['state_dict'])
    assert latest['best']['AP'] == 0.3 and latest['step'] == 3


def test_the_figures_of_each_epoch_are_its_own(prepare, monkeypatch):
    """Losses of training are means over the epoch's steps, those of validation over its batches."""
    prepared = prepare('train.epochs=2', 'train.train_iters=2', 'train.log_iters=1')
    values = iter([1.0, 3.0, 100.0, 5.0, 7.0, 200.0])  # two steps, then one batch of validation
    names = list(prepared[2].config['train']['loss_weights'])

    def forward(imgs, masks, keypoints, heatmaps, dtype):
        value, slope = next(values), sum(param.sum() for param in parameters) * 0
        return {name: slope + torch.full((2, 1), value * 2**i) for i, name in enumerate(names)}

    parameters = list(prepared[0].parameters())
    monkeypatch.setattr(prepared[0], 'forward', forward)
    rows = run(prepared)
    weights = prepared[2].config['train']['loss_weights']
    for row, mean, valid in zip(rows, (2.0, 6.0), (100.0, 200.0), strict=True):
        expected = {name: 2**i for i, name in enumerate(names)}
        for name, factor in expected.items():
            assert row[name] == mean * factor and row[f'valid_{name}'] == valid * factor
        unit = sum(weights[name] * factor for name, factor in expected.items())
        assert row['objective'] == pytest.approx(mean * unit)
        assert row['valid_objective'] == pytest.approx(valid * unit)


def test_a_checkpoint_is_saved_once_per_save_minutes(prepare, monkeypatch):
    """And at the end, which is all that a short run without AP needs."""
    for minutes, expected in ((10.0, [6]), (0.0, [1, 2, 3, 4, 5, 6])):
        prepared = prepare('train.epochs=3', 'train.train_iters=2', 'train.log_iters=1',
                           f'train.save_minutes={minutes}')  # fmt: skip
        state, report = prepared[2:]
        saved = []
        write = report.run.save
        monkeypatch.setattr(
            report.run, 'save', lambda s, which='checkpoint', write=write, saved=saved: (
                saved.append(s['step']) if which == 'checkpoint' else None, write(s, which)
            ),
        )  # fmt: skip
        run(prepared)
        assert sorted(set(saved)) == expected and saved[-1] == 6 and len(saved) < 12
        report.saved -= 601
        assert report.save_due(10.0)
        train.save(state, report)
        assert not report.save_due(10.0)


def test_a_run_says_once_how_long_it_will_take(prepare, monkeypatch):
    """After fifteen seconds, without its first step, which is slower than all others."""
    prepared = prepare('train.epochs=2', 'train.train_iters=50', 'train.batchsize=4')
    _, _, state, report = prepared
    report.begin_epoch(1, 50, 50)
    for state.step, now in enumerate((100, 106, 112, 118, 124), 1):
        with monkeypatch.context() as patch:
            patch.setattr('time.monotonic', lambda now=now: now)
            report.step(state)
    said = 'about 9 min 36 s of training to go on this machine (0.667 img/s)\n'
    assert (report.run.folder / 'log').read_text().count(said) == 1


def test_every_step_counts_for_how_long_it_will_take(prepare, monkeypatch):
    monkeypatch.setattr('utils.report.TRIAL', 0)
    prepared = prepare('train.epochs=2', 'train.train_iters=3', 'train.log_iters=3')
    run(prepared)
    (line,) = re.findall(r'about .* to go .*', (prepared[3].run.folder / 'log').read_text())
    assert re.fullmatch(r'about \d+ s of training to go on this machine \([\d.e+]+ img/s\)', line)
