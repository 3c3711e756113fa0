"""SIGKILL of one of two machines' rank, and of its agent as well, which another replaces."""

import os
import random
import tempfile
from pathlib import Path

from tests.faults import common
from utils import dist

SETTINGS = ('model.bn=True', 'train.save_minutes=0', 'train.log_iters=4')


def run(times=10, seed=0):
    """Each time the run ends with exactly the weights of one that nothing happened to."""
    rng = random.Random(seed)
    lost = {False: [], True: []}
    os.environ[dist.OWN_STORE] = '1'
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS)
        common.run(common.torchrun(), 'train.py', '-e', 'whole', **place)
        undisturbed = common.checkpoint_of(Path(folder, 'exp/whole'))
        for number in range(times):
            for replaced, found in lost.items():
                name, step = f'killed{number}_{int(replaced)}', rng.randrange(1, 60)
                codes, output = common.lose_rank(folder, place['settings'], name, replaced, step)
                if codes != [0, 0] or 'continuing at step' not in output:
                    found.append(f'{name}: exit codes {codes}\n{output}')
                elif common.differences(
                    common.checkpoint_of(Path(folder, 'exp', name)), undisturbed
                ):
                    found.append(f'{name}: other weights')
    return [
        ('SIGKILL of the rank of one of two machines', times, lost[False]),
        ('SIGKILL of the agent of one of two machines, replaced', times, lost[True]),
    ]
