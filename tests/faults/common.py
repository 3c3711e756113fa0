"""What the faults share: a drawn data set, a training of seconds, commands, and comparisons."""

import contextlib
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from data import synthetic

ROOT = Path(__file__).parent.parent.parent
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run')
PLAIN = (sys.executable,)
PATIENCE = 120  # seconds for one command
# A network and a training as small as they get. The seed matters where one rank and two are held
# against each other after some steps: Adam divides a gradient by its own size, so that the rounding
# error of one that is nearly 0 moves a weight, by up to 3e-5 in 20 steps with other seeds.
TINY = (
    'model.nstack=2', 'model.inp_dim=8', 'model.oup_dim=34', 'model.increase=4',
    'model.stem=[4,8,8]', 'train.input_res=64', 'train.output_res=16', 'train.batchsize=8',
    'train.epochs=2', 'train.train_iters=40', 'train.valid_iters=1', 'train.eval_epochs=0',
    'train.num_workers=0', 'train.precision=fp32', 'train.seed=1', 'test.num_workers=0',
    'test.precision=fp32',
)  # fmt: skip


def draw_set(folder, pictures=(24, 9)):
    """Draws a set of small pictures; returns the settings that name it."""
    synthetic.make(folder, pictures, size=96, people=(1, 3), seed=1)
    train, valid = (
        folder / f'annotations/person_keypoints_{split}.json' for split in synthetic.SPLITS
    )
    return [
        f'data.images={folder / "images"}',
        f'data.annotations={train}',
        f'data.valid_annotations={valid}',
    ]


def with_root_on_path():
    """The environment, in which Python finds this repository before what PYTHONPATH names."""
    paths = filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
    return os.environ | {'PYTHONPATH': os.pathsep.join(paths)}


def torchrun(*options, ranks=2):
    """The beginning of a command that starts a script on several ranks of this machine."""
    return (*TORCHRUN, '--nproc-per-node', str(ranks), *options)


def start(launcher, script, *args, cwd, settings=()):
    """Starts train.py or test.py (or another script) in a process group of its own."""
    chosen = ['--set', *settings] if settings else []
    command = [*launcher, str(ROOT / script), *map(str, args), *chosen]
    # One thread per process, with which all of them compute the same.
    environment = with_root_on_path() | {'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def machines(folder, settings, name, restarts=0):
    """Starts training on two machines, each the torchrun of one rank, that are both this one.

    Returns the two, and a function that starts another in place of the second. They meet at the
    first, which must not be killed.
    """
    port = free_port()
    meet = ('--rdzv-backend', 'c10d', '--rdzv-endpoint', f'localhost:{port}')
    launcher = torchrun('--nnodes', '2', *meet, '--max-restarts', str(restarts), ranks=1)

    def begin():
        return start(launcher, 'train.py', '-e', name, cwd=folder, settings=settings)

    first = begin()
    wait_for(lambda: is_open(port), first, 'a place to meet')
    return first, begin(), begin


def is_open(port):
    """Whether someone listens at a TCP port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(('localhost', port), 1):
        return True
    return False


def lose_rank(folder, settings, name, replaced, step=1):
    """Kills the rank of one of two machines at some step, or with `replaced` its agent as well.

    A new agent takes the place of a killed one. Returns the exit codes and what was printed.
    """
    first, second, begin = machines(folder, settings, name, restarts=1)
    wait_for(lambda: trains(Path(folder, 'exp', name), step), first, f'step {step}')
    for pid in [second.pid] * replaced + children(second.pid):
        os.kill(pid, signal.SIGKILL)
    if replaced:
        second.communicate()
        second = begin()
    ends = [finish(agent) for agent in (first, second)]
    return [code for code, _ in ends], '\n'.join(output for _, output in ends)


def finish(process):
    """Waits for a process; returns its exit code and what it printed."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f'no end after {PATIENCE} s: {process.args}\n{end(process)}') from None
    return process.returncode, output


def end(process):
    """Kills a process and its ranks, which have groups of their own; returns what it printed."""
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    return process.communicate()[0]


def run_here(script, *args, cwd, settings=()):
    """Runs a command in this process, which has imported everything: its exit code and output."""
    output, place, argv, threads = io.StringIO(), os.getcwd(), sys.argv, torch.get_num_threads()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    chosen = ['--set', *settings] if settings else []
    code = 0
    try:
        os.chdir(cwd)
        torch.set_num_threads(1)  # as `start` has it
        sys.argv = [str(ROOT / script), *map(str, args), *chosen]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(place)
        sys.argv = argv
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, output.getvalue()


def run(launcher, script, *args, cwd, settings=()):
    """Runs a command that is to succeed; returns what it printed."""
    if launcher == PLAIN:  # needs no process of its own
        code, output = run_here(script, *args, cwd=cwd, settings=settings)
    else:
        code, output = finish(start(launcher, script, *args, cwd=cwd, settings=settings))
    if code:
        raise RuntimeError(f'exit code {code}: {script} {args}\n{output}')
    return output


def wait_for(condition, process, what):
    """Waits until a condition holds; RuntimeError where the process ends, or time, before it."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f'{what} did not come about:\n{end(process)}')
        time.sleep(0.01)


def workplace(folder, *settings, **drawn):
    """The cwd and settings of `start` for tiny runs in an empty folder, on newly drawn pictures."""
    folder = Path(folder)
    return {'cwd': folder, 'settings': [*draw_set(folder / 'set', **drawn), *TINY, *settings]}


def trains(folder, steps=1):
    """Whether a run of the work folder has reached some step, as its checkpoint tells."""
    try:
        return checkpoint_of(folder)['step'] >= steps
    except FileNotFoundError:
        return False


def checkpoint_of(folder):
    """The checkpoint of a run folder."""
    return torch.load(Path(folder) / 'checkpoint.pth.tar', weights_only=True)


def same(a, b):
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(a, b):
    """The parts of two checkpoints that differ, of all that a run goes on with."""
    parts = ('state_dict', 'optimizer', 'step', 'epoch', 'samples', 'best', 'sums', 'random')
    return [part for part in parts if not same(a[part], b[part])]


def children(pid):
    """The process numbers of the children of a process that run Python, in their order."""
    found = subprocess.run(
        ['ps', '-o', 'pid=,args=', '--ppid', str(pid)], capture_output=True, text=True
    )
    lines = (line.split(None, 1) for line in found.stdout.splitlines())
    return [int(child) for child, command in lines if '.py' in command]


def free_port():
    """A TCP port of this machine that nobody uses."""
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]
