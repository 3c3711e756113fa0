"""SIGTERM at random moments: save, exit 0, go on to the very same weights."""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.faults import common

SETTINGS = ('model.bn=True', 'train.num_workers=1', 'train.eval_epochs=1', 'train.log_iters=3')


def run(times=4, seed=0):
    """A run that is stopped again and again until it is done equals the undisturbed one."""
    rng = random.Random(seed)
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS)
        common.run(common.PLAIN, 'train.py', '-e', 'whole', **place)
        undisturbed = common.checkpoint_of(Path(folder, 'exp/whole'))
        for number in range(times):
            name, stops = f'stopped{number}', 0
            process = common.start(common.PLAIN, 'train.py', '-e', name, **place)
            while True:
                for line in process.stdout:
                    if 'CPU' in line:  # the last line before the first step
                        break
                # Longer and longer, for an evaluation that is stopped begins anew.
                time.sleep(rng.uniform(0.3, 2) + stops)
                os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does, with all workers
                code, output = common.finish(process)
                if code or 'SIGTERM: saved after step' not in output:
                    break
                stops += 1
                process = common.start(common.PLAIN, 'train.py', '-c', name, cwd=folder)
            if code not in (0, -signal.SIGTERM) or stops == 0:
                lost.append(f'exit code {code} after {stops} stops:\n{output}')
            elif common.differences(common.checkpoint_of(Path(folder, 'exp', name)), undisturbed):
                lost.append(f'other weights after {stops} stops')
    return [('SIGTERM of one process and its workers, again and again', times, lost)]
