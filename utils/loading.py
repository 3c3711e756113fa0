"""Loading in worker processes: the order of samples, each rank's share, and the workers."""

import itertools
import os
import signal

import cv2
import numpy as np
import torch

from utils import dist

GRACE = 20  # seconds that a worker outlives a SIGTERM


class Passes(torch.utils.data.Sampler):
    """Endless (pass, image number) pairs: each pass visits every image once, newly shuffled.

    start: samples already drawn, so that a resumed run goes on in the middle of a pass.
    """

    def __init__(self, count, seed, start=0):
        self.count = count
        self.seed = seed
        self.start = start

    def __iter__(self):
        turn, done = divmod(self.start, self.count)
        while True:
            order = np.random.default_rng((self.seed, turn)).permutation(self.count)
            yield from ((turn, int(index)) for index in order[done:])
            turn, done = turn + 1, 0


class RankBatches(torch.utils.data.Sampler):
    """Batches of `batchsize` numbers over all ranks: of each, the share that this rank loads.

    The batches themselves do not depend on how many ranks there are.
    """

    def __init__(self, numbers, batchsize):
        self.numbers = numbers
        self.batchsize = batchsize
        share = batchsize // dist.world_size()
        self.share = slice(dist.rank() * share, (dist.rank() + 1) * share)

    def __iter__(self):
        numbers = iter(self.numbers)
        while batch := list(itertools.islice(numbers, self.batchsize)):
            yield batch[self.share]


def worker_count(setting):
    """The setting, or for -1 this rank's share of the cores that it may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return setting if setting >= 0 else min(max(cores // dist.local_world_size(), 1), 8)


def start_worker(_):
    """Set-up of a worker process: one thread of OpenCV; Ctrl-C is the main process's affair."""
    cv2.setNumThreads(1)
    if hasattr(os, 'nice') and not torch.cuda.is_available():  # Windows has none
        # The network's threads wait for one another many times a step: a worker that takes one of
        # their cores stops them all, while it can well live on the moments that they leave free.
        os.nice(19)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler's SIGTERM reaches workers, too, while the ranks still need a batch or two to stop
    # at the same step. The handler also replaces the main process's own, which a fork inherits.
    if hasattr(signal, 'alarm'):  # nor a SIGTERM that reaches more than one process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def make_loader(dataset, workers, **options):
    """A DataLoader with this project's workers, which leaves the training's random state alone."""
    if workers > 0:
        # A process forked while OpenCV has threads would wait for them for ever.
        cv2.setNumThreads(1)
        options = {'prefetch_factor': 4, 'persistent_workers': True} | options
    return torch.utils.data.DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        **options,
    )
