"""SIGKILL of one rank at random moments, under torchrun's restarts."""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.faults import common

SETTINGS = ('model.bn=True', 'train.train_iters=150', 'train.save_minutes=0')


def run(times=6, seed=0):
    """Each time the run ends with exactly the weights of one that nothing happened to."""
    rng = random.Random(seed)
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = {
            'cwd': folder,
            'settings': [*common.draw_set(folder / 'set'), *common.TINY, *SETTINGS],
        }
        common.run(common.torchrun(), 'train.py', '-e', 'whole', **command)
        undisturbed = common.checkpoint_of(folder / 'exp' / 'whole')
        for number in range(times):
            name = f'killed{number}'
            launcher = common.torchrun('--max-restarts', '1')
            process = common.start(launcher, 'train.py', '-e', name, **command)
            run_folder, victim = folder / 'exp' / name, number % 2
            common.wait_for(lambda f=run_folder: common.trains(f), process, 'a first checkpoint')
            time.sleep(rng.uniform(0, 2))
            os.kill(common.ranks_of(process)[victim], signal.SIGKILL)
            code, output = common.finish(process)
            if code or 'continuing at step' not in output:
                lost.append(f'rank {victim}: exit code {code}\n{output}')
            elif common.differences(common.checkpoint_of(run_folder), undisturbed):
                lost.append(f'rank {victim}: other weights')
    return [('SIGKILL of one of two ranks, --max-restarts 1', times, lost)]
