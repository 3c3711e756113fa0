"""SIGKILL at random moments of a process that saves all the time."""

import os
import random
import signal
import tempfile
import time

import torch

from utils.checkpoint import read_checkpoint
from utils.run import Run


def save_for_ever(done):
    """Saves checkpoints of rising steps, and tells through the pipe `done` which are complete."""
    run, step = Run('saved'), 0
    run.folder.mkdir(parents=True, exist_ok=True)
    weights = {f'layer{i}.weight': torch.zeros(500, 500) for i in range(5)}
    while True:
        step += 1
        for value in weights.values():
            value.fill_(step)
        run.save({'state_dict': weights, 'step': step})
        os.write(done, step.to_bytes(4, 'big'))


def run(times=50, seed=0):
    """Each time the checkpoint can be read, is whole, and no older than the last completed one."""
    rng = random.Random(seed)
    lost, halves = [], 0
    torch.set_num_threads(1)  # a fork would wait for the threads of its parent for ever
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(times):
            told, done = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(told)
                save_for_ever(done)
            os.close(done)
            os.read(told, 4)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            completed = 1 + len(os.read(told, 2**20)) // 4
            os.close(told)
            path = Run('saved').checkpoint()
            halves += path.with_name(path.name + '.part').exists()
            checkpoint = read_checkpoint(path)
            values = torch.stack([v.unique() for v in checkpoint['state_dict'].values()])
            if checkpoint['step'] < completed or not (values == checkpoint['step']).all():
                lost.append(f'step {checkpoint["step"]}, completed {completed}, {values.tolist()}')
        os.chdir(before)
    if halves == 0:
        lost.append('no kill came in the middle of a save: nothing was tried')
    return [(f'SIGKILL of a saving process, {halves} times with half a file', times, lost)]
