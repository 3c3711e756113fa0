"""Several processes, gloo on CPUs: the same as one, stopped and continued, killed and restarted."""

import copy
import json
import os
import signal
import socket

import pytest
import torch

from models.posenet import PoseNet
from tests.faults import common
from utils import dist, loading

ONCE = ('train.epochs=1', 'train.train_iters=1')
WHOLE = ('model.bn=True', 'train.num_workers=1', 'train.log_iters=4', 'train.save_minutes=0')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder to work in, and the settings that name its drawn pictures."""
    folder = tmp_path_factory.mktemp('ranks')
    return folder, common.draw_set(folder / 'set')


@pytest.fixture(scope='module')
def train(place):
    """train(launcher, name, *settings): a whole run; returns its checkpoint."""
    folder, settings = place

    def train(launcher, name, *chosen):
        settings_all = [*settings, *common.TINY, *chosen]
        common.run(launcher, 'train.py', '-e', name, cwd=folder, settings=settings_all)
        return common.checkpoint_of(folder / 'exp' / name)

    return train


@pytest.fixture(scope='module')
def undisturbed(train):
    """The end of a run on two ranks that nothing happened to."""
    return train(common.torchrun(), 'whole', *WHOLE)


def gradients(checkpoint):
    """After one step of Adam its first moments are a tenth of the gradients."""
    state = checkpoint['optimizer']['state']
    return torch.cat([10 * state[i]['exp_avg'].flatten() for i in sorted(state)])


def weights(checkpoint):
    return torch.cat([value.flatten() for value in checkpoint['state_dict'].values()])


def test_two_ranks_and_two_passes_give_the_gradients_of_one(train):
    one = gradients(train(common.PLAIN, 'one', *ONCE))
    for launcher, name, settings in (
        (common.torchrun(), 'two', []),
        (common.PLAIN, 'passes', ['train.accumulate=2']),
    ):
        other = gradients(train(launcher, name, *ONCE, *settings))
        assert (one - other).norm() < 1e-6 * one.norm(), name
    wrong = gradients(train(common.PLAIN, 'half', *ONCE, 'train.batchsize=4'))
    assert (one - wrong).norm() > 1e-2 * one.norm()  # the comparison can fail


@pytest.mark.parametrize('bn', [False, True])
def test_computing_activations_twice_changes_neither_gradients_nor_statistics(bn):
    torch.manual_seed(0)
    kept = PoseNet(2, 16, 68, bn, 8)
    twice = copy.deepcopy(kept)
    twice.checkpoint_stacks = True
    imgs, calls = torch.rand(2, 64, 64, 3), []
    twice.outs[0].register_forward_hook(lambda *_: calls.append(1))
    for network in (kept, twice):
        network.train()
        network(imgs).pow(2).mean().backward()
    assert len(calls) == 2  # it does compute them twice
    pairs = zip(kept.parameters(), twice.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)
    buffers = list(zip(kept.buffers(), twice.buffers(), strict=True))
    assert bool(buffers) == bn and all(torch.equal(a, b) for a, b in buffers)


def test_two_ranks_have_the_weights_of_one_after_20_steps(train, place):
    """So have two machines, whose restarts `python -m tests.faults` compares."""
    folder, settings = place
    steps = ('train.epochs=4', 'train.train_iters=5', 'train.eval_epochs=4')
    command = {'cwd': folder, 'settings': [*settings, *common.TINY, *steps]}
    # Both at once: to meet takes time in which nothing is computed.
    ranks = common.start(common.torchrun(), 'train.py', '-e', 'two20', **command)
    one = train(common.PLAIN, 'one20', *steps)
    code, output = common.finish(ranks)
    assert code == 0, output
    two = common.checkpoint_of(folder / 'exp' / 'two20')
    assert one['step'] == two['step'] == 20
    assert (weights(one) - weights(two)).abs().max() < 1e-5
    # Rank 0 alone writes, and its figures are those of all images.
    logs = {n: (folder / 'exp' / n / 'metrics.jsonl').read_text() for n in ('one20', 'two20')}
    lines = {name: [json.loads(line) for line in log.splitlines()] for name, log in logs.items()}
    assert [len(of_run) for of_run in lines.values()] == [4, 4]
    for a, b in zip(*lines.values(), strict=True):
        for key in ('detection', 'push', 'pull', 'valid_objective', 'images'):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key
    assert 'AP' in lines['two20'][3]
    assert (folder / 'exp/two20/log').read_text().count('2 ranks on CPUs') == 1


def test_two_ranks_write_the_detections_of_one(place, undisturbed):
    folder, _ = place
    settings = ['test.batchsize=2', 'test.square=False', 'test.detection_val=0.02']
    found = []
    for launcher in (common.PLAIN, common.torchrun(), common.torchrun(ranks=3)):
        printed = common.run(launcher, 'test.py', '-c', 'whole', '--vis', 0, cwd=folder,
                             settings=settings)  # fmt: skip
        assert printed.count('Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all') == 1
        found.append((folder / 'exp/whole/dt.json').read_bytes())
    assert found[0] == found[1] == found[2]
    assert len(json.loads(found[0])) > 9


def test_sigterm_saves_and_the_rest_equals_the_undisturbed_run(place, undisturbed):
    """Sent to torchrun, and to one rank of the run that goes on from there."""
    folder, settings = place
    run = folder / 'exp' / 'stopped'
    command = ['-e', 'stopped']
    chosen = [*settings, *common.TINY, *WHOLE]
    for to_all, step in ((True, 15), (False, 40)):
        process = common.start(common.torchrun(), 'train.py', *command, cwd=folder, settings=chosen)
        common.wait_for(lambda step=step: common.trains(run, step), process, f'step {step}')
        os.kill(process.pid if to_all else common.children(process.pid)[1], signal.SIGTERM)
        code, output = common.finish(process)
        assert "continue with 'python train.py -c stopped'" in output
        if not to_all:
            assert code == 0  # torchrun itself, where it is told to stop, ends with an error
        stopped = common.checkpoint_of(run)
        assert f'saved after step {stopped["step"]};' in output
        assert step <= stopped['step'] < undisturbed['step']
        # With other workers than before, which change nothing either.
        command, chosen = ['-c', 'stopped'], ['train.num_workers=0']
    common.run(common.torchrun(), 'train.py', *command, cwd=folder)
    assert not common.differences(common.checkpoint_of(run), undisturbed)


def test_a_killed_rank_is_restarted_and_ends_with_the_undisturbed_weights(place, undisturbed):
    folder, settings = place
    command = {'cwd': folder, 'settings': [*settings, *common.TINY, *WHOLE]}
    launcher = common.torchrun('--max-restarts', '1')
    process = common.start(launcher, 'train.py', '-e', 'killed', **command)
    run = folder / 'exp' / 'killed'
    common.wait_for(lambda: common.trains(run, 20), process, 'step 20')
    os.kill(common.children(process.pid)[1], signal.SIGKILL)
    code, output = common.finish(process)
    assert code == 0, output
    assert 'continuing at step' in output
    assert not common.differences(common.checkpoint_of(run), undisturbed)
    # Another launch of the same command is another run, which must not write over this one.
    again = common.start(common.torchrun(), 'train.py', '-e', 'killed', **command)
    code, output = common.finish(again)
    assert code != 0 and 'exp/killed has a checkpoint' in output
    assert not common.differences(common.checkpoint_of(run), undisturbed)


def test_a_refused_launch_that_is_restarted_leaves_the_run_as_it_was(train, place):
    """A restart alone does not make a run of another launch its own."""
    folder, settings = place
    steps = ('train.epochs=1', 'train.train_iters=4')
    train(common.PLAIN, 'old', *steps)
    run = folder / 'exp' / 'old'
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    more = [*settings, *common.TINY, 'train.epochs=3', 'train.train_iters=4']
    launcher = common.torchrun('--max-restarts', '1')
    code, output = common.finish(
        common.start(launcher, 'train.py', '-e', 'old', cwd=folder, settings=more)
    )
    assert code != 0 and 'has a checkpoint: continue it with' in output, output
    assert 'continuing at step' not in output and 'terminate called' not in output
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before


def test_one_program_trains_a_run_until_it_dies_whatever_its_workers_do(place):
    folder, settings = place
    chosen = [*settings, *common.TINY, *WHOLE, 'train.num_workers=2']
    first = common.start(common.PLAIN, 'train.py', '-e', 'dup', cwd=folder, settings=chosen)
    run = folder / 'exp' / 'dup'
    common.wait_for(lambda: common.trains(run), first, 'a first checkpoint')
    code, output = common.run_here('train.py', '-c', 'dup', cwd=folder)
    workers = common.children(first.pid)
    for worker in workers:  # which then do not see that the main process has gone
        os.kill(worker, signal.SIGSTOP)
    assert code == 2
    assert f'process {first.pid} on {socket.gethostname()}' in output
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    try:
        assert workers and all(os.path.exists(f'/proc/{worker}') for worker in workers)
        common.run(common.PLAIN, 'train.py', '-c', 'dup', cwd=folder, settings=['train.epochs=1'])
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)


def test_of_two_new_runs_of_a_name_one_is_refused(place):
    folder, settings = place
    command = {'cwd': folder, 'settings': [*settings, *common.TINY, *WHOLE]}
    both = [common.start(common.PLAIN, 'train.py', '-e', 'twins', **command) for _ in range(2)]
    ends = [common.finish(process) for process in both]
    assert sorted(code for code, _ in ends) == [0, 2], ends
    (refused,) = (output for code, output in ends if code)
    assert 'exp/twins is being trained by process' in refused or 'has a checkpoint' in refused


def test_several_machines_that_could_not_restart_are_refused(place, tmp_path, monkeypatch):
    folder, settings = place
    monkeypatch.delenv(dist.OWN_STORE, raising=False)
    slow = tmp_path / 'sitecustomize.py'  # the second machine takes longer to start
    slow.write_text("import os, time\nif os.environ.get('RANK') == '1': time.sleep(3)\n")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    agents = common.machines(folder, [*settings, *common.TINY], 'refused')
    for code, output in map(common.finish, agents[:2]):
        assert code != 0
        assert output.count(f"with '{dist.OWN_STORE}=1 torchrun --nnodes ...'") == 1, output
    assert not (folder / 'exp' / 'refused').exists()


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers(place):
    folder, settings = place
    command = {'cwd': folder, 'settings': [*settings, *common.TINY]}
    process = common.start(common.torchrun(ranks=3), 'train.py', '-e', 'uneven', **command)
    command['settings'].append('train.accumulate=3')
    for code, output in (
        common.finish(process),
        common.run_here('train.py', '-e', 'uneven', **command),
    ):
        assert code != 0
        assert 'train.batchsize is 8: expected a multiple of 3' in output
        assert output.count('error: ') == 1
    assert not (folder / 'exp' / 'uneven').exists()


def test_an_error_of_any_rank_is_said_once(place, undisturbed):
    """A photo that is cut short, in the share of the second rank; a run that is nowhere, in all."""
    folder, _ = place
    photo = sorted((folder / 'set/images/val2017').iterdir())[1]
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-100])
    try:
        for name, words in (('whole', photo.name), ('nowhere', 'exp/nowhere has no checkpoint')):
            process = common.start(common.torchrun(), 'test.py', '-c', name, cwd=folder)
            code, output = common.finish(process)
            told = [line for line in output.splitlines() if line.startswith(('error', 'warning'))]
            assert code != 0
            assert [words in line for line in told].count(True) == 1, output
    finally:
        photo.write_bytes(whole)


SHARED_FILE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from utils import dist
dist.PIECE = 7
dist.start()
os.chdir(Path({folder!r}, str(dist.rank())))
say = lambda text: os.write(1, f'{{name}} {{dist.rank()}} {{text}}\\n'.encode())  # whole lines
for name in ('same', 'other', 'missing', 'nowhere'):
    try:
        with dist.shared_file(Path(name)) as path:
            say(f'{{path.name}} {{path == Path(name)}} {{path.read_bytes()}}')
        assert path == Path(name) or not path.parent.exists()
    except FileNotFoundError:
        say('is not there')

def read():
    with dist.shared_file(Path('same')) as path:
        return path.read_bytes()

name = 'within'
say(dist.share(read))
dist.stop()
"""


def test_a_rank_that_does_not_see_the_file_of_rank_0_is_sent_it(tmp_path):
    for rank, files in enumerate((('same', 'other', 'missing'), ('same', 'other', 'nowhere'))):
        (tmp_path / str(rank)).mkdir()
        for name in files:
            own = rank if name == 'other' else 0
            (tmp_path / str(rank) / name).write_bytes(b'0123456789 of rank %d' % own)
    script = tmp_path / 'read.py'
    script.write_text(SHARED_FILE.format(root=str(common.ROOT), folder=str(tmp_path)))
    code, output = common.finish(common.start(common.torchrun(), script, cwd=tmp_path))
    assert code == 0, output
    lines = output.splitlines()
    for name, sees in (('same', True), ('other', False), ('missing', False)):
        for rank, own in ((0, True), (1, sees)):
            assert f"{name} {rank} {name} {own} b'0123456789 of rank 0'" in lines, output
    assert [line for line in lines if 'nowhere' in line and 'is not there' in line][1:], output
    # Rank 0 may read a file while the others wait for what it makes of it, as for a run's config.
    assert {f"within {rank} b'0123456789 of rank 0'" for rank in (0, 1)} <= set(lines), output


def test_shares_of_ranks_are_the_batches_of_one(monkeypatch):
    """The order of samples depends on the seed and the pass alone."""

    def batches(rank, world, count=5):
        monkeypatch.setattr(dist, 'rank', lambda: rank)
        monkeypatch.setattr(dist, 'world_size', lambda: world)
        numbers = iter(loading.RankBatches(loading.Passes(7, seed=3, start=4), 12))
        return [next(numbers) for _ in range(count)]

    whole = batches(0, 1)
    for world in (2, 3, 4):
        shares = [batches(rank, world) for rank in range(world)]
        assert [sum(parts, []) for parts in zip(*shares, strict=True)] == whole
        assert all(len(part) == 12 // world for part in shares[-1])


def test_workers_of_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(loading.os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    for ranks, expected in ((1, 8), (2, 4), (8, 1), (16, 1)):
        monkeypatch.setattr(dist, 'local_world_size', lambda ranks=ranks: ranks)
        assert loading.worker_count(-1) == expected
    assert loading.worker_count(3) == 3
