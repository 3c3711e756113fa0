"""SIGKILL of one rank at random moments, under torchrun's restarts."""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.faults import common

SETTINGS = ('model.bn=True', 'train.train_iters=100', 'train.save_minutes=0')


def run(times=6, seed=0):
    """Each time the run ends with exactly the weights of one that nothing happened to."""
    rng = random.Random(seed)
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS)
        common.run(common.torchrun(), 'train.py', '-e', 'whole', **place)
        undisturbed = common.checkpoint_of(Path(folder, 'exp/whole'))
        for number in range(times):
            name, victim = f'killed{number}', number % 2
            launcher = common.torchrun('--max-restarts', '1')
            process = common.start(launcher, 'train.py', '-e', name, **place)
            run_folder = Path(folder, 'exp', name)
            common.wait_for(lambda f=run_folder: common.trains(f), process, 'a first checkpoint')
            time.sleep(rng.uniform(0, 1))
            os.kill(common.children(process.pid)[victim], signal.SIGKILL)
            code, output = common.finish(process)
            if code or 'continuing at step' not in output:
                lost.append(f'rank {victim}: exit code {code}\n{output}')
            elif common.differences(common.checkpoint_of(run_folder), undisturbed):
                lost.append(f'rank {victim}: other weights')
    return [('SIGKILL of one of two ranks, --max-restarts 1', times, lost)]
