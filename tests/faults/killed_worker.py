"""SIGKILL of a process that loads images, as the kernel does it when memory runs out."""

import os
import signal
import tempfile
from pathlib import Path

from tests.faults import common

SETTINGS = ('train.num_workers=2', 'train.save_minutes=0')


def run(times=3):
    """A clear error that names memory; what was saved goes on to the undisturbed weights."""
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS)
        for launcher, where in ((common.PLAIN, 'one process'), (common.torchrun(), 'two ranks')):
            lost, prefix = [], where.replace(' ', '-')
            common.run(launcher, 'train.py', '-e', f'{prefix}-whole', **place)
            undisturbed = common.checkpoint_of(Path(folder, f'exp/{prefix}-whole'))
            for number in range(times):
                name = f'{prefix}-{number}'
                lost += kill_one(launcher, folder, name, place, undisturbed)
            yield f'SIGKILL of a data worker, {where}', times, lost


def kill_one(launcher, folder, name, place, undisturbed):
    """What was lost by killing a worker of a run."""
    run_folder = Path(folder, 'exp', name)
    process = common.start(launcher, 'train.py', '-e', name, **place)
    common.wait_for(lambda: common.trains(run_folder), process, 'a first checkpoint')
    loads = process.pid if launcher == common.PLAIN else common.children(process.pid)[1]
    os.kill(common.children(loads)[-1], signal.SIGKILL)
    code, output = common.finish(process)
    if (
        code == 0
        or 'error: a process that loads images died, most likely for want of' not in output
    ):
        return [f'exit code {code}\n{output}']
    common.run(launcher, 'train.py', '-c', name, cwd=folder)
    differ = common.differences(common.checkpoint_of(run_folder), undisturbed)
    return [f'after the resume other {", ".join(differ)}'] if differ else []
