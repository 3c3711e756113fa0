"""Losses that are not finite on one rank: NaN in an image of its share of a batch.

As a script (python tests/faults/nonfinite.py 2 2 -e run1 ...) it is train.py with the image number
5 poisoned in the passes from the first number to the second.
"""

import json
import sys
import tempfile
from pathlib import Path

import train
from data.coco_pose import dp
from tests.faults import common
from utils.errors import exit_code

SCRIPT = 'tests/faults/nonfinite.py'
SETTINGS = ('model.bn=True', 'train.log_iters=1', 'train.save_minutes=0')
# As many images as a batch: every batch has the poisoned one, in the share of one rank.
PICTURES = (8, 9)


def run():
    """A step of all ranks is skipped or stops the run, as set; the weights stay finite."""
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS, pictures=PICTURES)
        for what, passes, setting, check in (
            ('one loss not finite, skip', (7, 7), 'skip', check_skipped),
            ('one loss not finite, stop', (7, 7), 'stop', check_stopped),
            ('11 losses in a row, skip', (7, 99), 'skip', check_gave_up),
        ):
            for launcher, where in ((common.PLAIN, 'one'), (common.torchrun(), 'two')):
                name = f'{what.replace(" ", "-").replace(",", "")}-{where}'
                settings = [*place['settings'], f'train.on_nonfinite={setting}']
                process = common.start(
                    launcher, SCRIPT, *passes, '-e', name, cwd=folder, settings=settings
                )
                code, output = common.finish(process)
                problem = check(Path(folder, 'exp', name), code, output)
                lost = [f'{problem}\n{output}'] if problem else []
                yield f'{what}, ranks: {where}', 1, lost


def finite(checkpoint):
    return all(value.isfinite().all() for value in checkpoint['state_dict'].values())


def check_skipped(folder, code, output):
    """What is wrong about a run that had to skip one step."""
    if (
        code
        or output.count('; step skipped') != 1
        or 'losses are not finite at step 8' not in output
    ):
        return f'exit code {code}, or not one warning'
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    if [line['skipped'] for line in lines] != [1, 0]:
        return f'counted {[line["skipped"] for line in lines]}'
    return '' if finite(common.checkpoint_of(folder)) else 'weights are not finite'


def check_stopped(folder, code, output):
    """What is wrong about a run that had to stop at one step."""
    if code == 0 or output.count('error: losses are not finite at step 8') != 1:
        return f'exit code {code}, or not one error'
    checkpoint = common.checkpoint_of(folder)
    return '' if checkpoint['step'] == 7 and finite(checkpoint) else 'the checkpoint is too late'


def check_gave_up(folder, code, output):
    """What is wrong about a run that had to skip ten steps, and to stop at the next."""
    if code == 0 or output.count('; step skipped') != 10 or '(11 steps in a row)' not in output:
        return f'exit code {code}, or not ten warnings'
    return '' if finite(common.checkpoint_of(folder)) else 'weights are not finite'


def main():
    first, last = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    sample = dp.Dataset.sample

    def poisoned(self, photo, index, turn):
        result = sample(self, photo, index, turn)
        if self.ranges and index == 5 and first <= turn <= last:
            result['imgs'][:] = float('nan')
        return result

    dp.Dataset.sample = poisoned
    return train.main()


if __name__ == '__main__':
    sys.exit(exit_code(main))
