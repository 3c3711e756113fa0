"""A disk that fills up while a run saves: a small tmpfs, which root alone may mount."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

from tests.faults import common

SETTINGS = ('train.train_iters=250', 'train.save_minutes=0')


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes at a folder."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'cannot mount a small disk, which needs root: {done.stderr.strip()}')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(path):
    """Writes a file until the disk is full."""
    with open(path, 'wb', buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(2**14))


def fill_during(folder, name, relieved):
    """Fills the disk during a run, and makes room again if `relieved`; what was lost.

    Also the steps of the checkpoints before the disk was full, and at the end.
    """
    place, exp, lost = common.workplace(folder, *SETTINGS), Path(folder, 'exp'), []
    with small_disk(exp, 6 * 2**20):
        process = common.start(common.PLAIN, 'train.py', '-e', name, **place)
        common.wait_for(lambda: common.trains(exp / name), process, 'a first checkpoint')
        fill(exp / 'filler')
        before = common.checkpoint_of(exp / name)['step']
        if relieved:
            common.wait_for(lambda: warned(process), process, 'a warning')
            (exp / 'filler').unlink()
        code, output = common.finish(process)
        after = common.checkpoint_of(exp / name)
    if 'No space left on device' not in output and not relieved:
        lost.append(f'no warning in:\n{output}')
    if code != (0 if relieved else 1):
        lost.append(f'exit code {code}:\n{output}')
    if after['step'] < before or relieved and after['step'] != 500:
        lost.append(f'the checkpoint is of step {after["step"]}, before the fault of {before}')
    return lost


def warned(process):
    """Whether the next line that a run prints is a warning; waits for it."""
    return process.stdout.readline().startswith('warning: ')


def run():
    """The old checkpoint stays, the run goes on, the next save tries again, the exit code tells."""
    for relieved, what in ((True, 'for a while: exit code 0'), (False, 'to the end: exit code 1')):
        lost = []
        for number in range(3):
            with tempfile.TemporaryDirectory() as folder:
                lost += fill_during(folder, f'full{number}', relieved)
        yield f'full disk, {what}', 3, lost
