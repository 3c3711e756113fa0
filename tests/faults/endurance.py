"""5,000 steps of a tiny run: memory, file handles and threads stay what they are."""

import os
import tempfile
import time
from pathlib import Path

from tests.faults import common

SETTINGS = (
    'train.train_iters=500', 'train.epochs=10', 'train.eval_epochs=1', 'train.num_workers=1',
    'train.save_minutes=0.1',
)  # fmt: skip


def usage(pid):
    """Resident memory in MiB, file handles and threads of a process."""
    status = dict(
        line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines()
    )
    handles = len(os.listdir(f'/proc/{pid}/fd'))
    return int(status['VmRSS'].split()[0]) / 1024, handles, int(status['Threads'])


def run():
    """Resident memory grows by less than 2 % after the first 500 steps."""
    lost, seen = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = common.workplace(folder, *SETTINGS)
        process = common.start(common.PLAIN, 'train.py', '-e', 'long', **place)
        log = Path(folder, 'exp/long/metrics.jsonl')
        epochs = 0
        while epochs < 10:
            if process.poll() is not None:
                break
            done = len(log.read_text().splitlines()) if log.exists() else 0
            if done > epochs:
                epochs = done
                time.sleep(1)  # when the memory of the epoch's evaluation has been given back
                if process.poll() is None:
                    seen.append(usage(process.pid))
            time.sleep(0.05)
        _, output = common.finish(process)
    if len(seen) < 9:
        return [('5,000 steps', 1, [f'too short to tell:\n{output}'])]
    (first, handles, threads), (last, handles_last, threads_last) = seen[0], seen[8]
    if last > 1.02 * first:
        lost.append(f'resident memory grew from {first:.1f} to {last:.1f} MiB')
    if handles_last > handles + 2 or threads_last > threads + 2:
        lost.append(f'handles and threads by epoch: {[pair[1:] for pair in seen]}')
    what = f'5,000 steps: {first:.1f} MiB after 500, {last:.1f} after 4,500'
    return [(what, 1, lost)]
