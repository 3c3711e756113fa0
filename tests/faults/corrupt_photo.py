"""A photo cut short, which one rank meets in its share of a batch and the other does not."""

import tempfile
from pathlib import Path

from tests.faults import common


def run():
    """All ranks stay in step, and have the weights of one process, but for rounding."""
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder)
        photo = sorted(Path(folder, 'set/images/train2017').iterdir())[3]
        photo.write_bytes(photo.read_bytes()[:500])
        weights = []
        for launcher, name in ((common.PLAIN, 'one'), (common.torchrun(), 'two')):
            output = common.run(launcher, 'train.py', '-e', name, **place)
            if f'{photo.name} is cut short' not in output or 'epoch 2/2' not in output:
                lost.append(f'no warning, or no end:\n{output}')
            checkpoint = common.checkpoint_of(Path(folder, 'exp', name))
            weights.append(checkpoint['state_dict'])
        far = max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0])
        if far > 1e-3:  # after 80 steps; a rank out of step would be out by a learning rate a step
            lost.append(f'weights of one and two ranks differ by {far}')
    return [('a corrupt photo in one rank only', 1, lost)]
