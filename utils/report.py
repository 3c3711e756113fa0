"""What a run tells the user: on the screen, in its log, in metrics.jsonl and in TensorBoard."""

import sys
import time

from tqdm import tqdm

from utils import dist
from utils.board import Board
from utils.device import describe_device
from utils.loading import worker_count
from utils.metrics import add_metrics

PERIOD = 30  # seconds between two lines within an epoch
TRIAL = 15  # seconds of training, from its second step on, that tell how long all of it takes


def describe(run, config, network, loaders, device, precision):
    """What explains a run that went wrong, as lines.

    loaders: by split, 'train' and 'valid'. precision: a phrase that names it and says why.
    """
    parameters = sum(param.numel() for param in network.parameters())
    settings, ranks = config['train'], dist.world_size()
    passes, workers = settings['accumulate'], worker_count(settings['num_workers'])
    batch, shares = f'{settings["batchsize"]} images', ranks * passes
    if shares > 1:
        share = settings['batchsize'] // shares
        batch += f' ({ranks} ranks x {passes} backward passes x {share})'
    text = (
        f'{run.folder}: {config["network"]}, {parameters:,} parameters\n'
        f'images: {len(loaders["train"].dataset):,} for training, '
        f'{len(loaders["valid"].dataset):,} for validation\n'
        f'{settings["epochs"]} epochs of {settings["train_iters"]} steps of {batch}, '
        f'{workers} workers, {settings["optimizer"]}, learning rate {settings["learning_rate"]:g}\n'
        f'{describe_device(device, settings)}, {precision}{", compiled" * settings["compile"]}'
    )
    if config['model']['bn'] and shares > 1:
        synchronized = ranks > 1 and device.type == 'cuda' and passes == 1
        text += '\nnote: BatchNorm sees the images of ' + (
            'all ranks together' if synchronized else 'one rank and one backward pass at a time'
        )
    return text


def format_losses(losses):
    """'detection 0.00123 | push 0.041 | pull 0.038'."""
    return ' | '.join(f'{name} {value:.3g}' for name, value in losses.items())


def format_duration(seconds):
    """A time span in its two largest units: '2 d 4 h', '3 min 20 s'."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [(days, 'd'), (hours, 'h'), (minutes, 'min'), (seconds, 's')]
    first = next((i for i, (value, _) in enumerate(parts) if value), 3)
    return ' '.join(f'{value} {unit}' for value, unit in parts[first : first + 2])


class Report:
    """Reports on a run; rank 0 speaks for all.

    loss_weights: by name, in the order of the losses (L, S). step: up to which the run continues.
    """

    def __init__(self, run, loss_weights, step):
        self.run = run
        self.board = Board(run.folder / 'events', loss_weights, step)
        self.outdated = set()  # files whose last version could not be written
        self.broken_photos = set()  # that have been reported
        self.saved = self.start = time.monotonic()  # when the last checkpoint was
        self.epochs = 0  # that have ended
        self.trial = None  # when the first step ended, and its number

    def save_due(self, minutes):
        """Whether the last checkpoint, or the start, is longer ago than that."""
        return time.monotonic() - self.saved > 60 * minutes

    def say(self, text):
        """Prints a text, without disturbing a progress bar, and adds it to the log."""
        if dist.rank() == 0:
            tqdm.write(text)
            sys.stdout.flush()
            self.write('log', lambda: self.run.log(text))

    def write(self, name, action):
        """Calls action() on rank 0; returns whether it could write the run's file `name`.

        A full disk does not end a run, but a warning and the exit code tell.
        """
        if dist.rank() > 0:
            return True
        try:
            action()
        except OSError as error:
            self.outdated.add(name)
            print(
                f'warning: {self.run.folder}/{name} is not up to date ({error.strerror or error}): '
                'make room; the next save tries again', file=sys.stderr, flush=True,
            )  # fmt: skip
            return False
        self.outdated.discard(name)
        return True

    def check_photos(self, batch):
        """Warns about each broken photo in a batch, once."""
        for problem in set(batch['problem']) - {''} - self.broken_photos:
            self.broken_photos.add(problem)
            text = f'warning: {problem}; another photo takes its place'
            # A photo can be broken on the disk of one machine alone, which rank 0 does not see.
            self.say(text) if dist.rank() == 0 else print(text, file=sys.stderr, flush=True)

    def begin_epoch(self, epoch, steps, left):
        """Shows a progress bar on a terminal. left: the steps that the epoch still lacks."""
        self.bar = tqdm(
            total=steps, initial=steps - left, leave=False, desc=f'epoch {epoch}', unit='step',
            disable=None if dist.rank() == 0 else True,
        )  # fmt: skip
        self.last_progress = time.monotonic()

    def step(self, state):
        """Counts a step in the bar; once, after a few, says how long those that are left take."""
        self.bar.update()
        now, settings = time.monotonic(), state.config['train']
        if self.trial is None:  # the first step waits for workers, and sets up what others reuse
            self.trial = now, state.step
        begun, first = self.trial
        if now - begun > TRIAL:
            self.trial = float('inf'), 0  # never again
            speed = (state.step - first) / (now - begun)
            left = settings['epochs'] * settings['train_iters'] - state.step
            self.say(
                f'about {format_duration(left / speed)} of training to go on this machine '
                f'({speed * settings["batchsize"]:.3g} img/s)'
            )

    def progress(self, state, lr):
        """Shows the epoch's losses so far: in the bar or, without one, a line; in TensorBoard."""
        text, done = format_losses(state.losses()), (state.step - 1) % self.bar.total + 1
        self.bar.set_postfix_str(text)
        due = time.monotonic() - self.last_progress > PERIOD
        if due and self.bar.disable:
            self.say(f'  step {done}/{self.bar.total} | {text}')
        if due or done == self.bar.total:
            self.last_progress = time.monotonic()
            self.write('events', lambda: self.board.progress(state.step, state.sums, lr))

    def end_epoch(self, metrics, losses, valid_losses, pictures, epochs):
        """Writes an epoch's figures: a line, a row of metrics.jsonl, and events.

        metrics: the row. losses: of training, by name. valid_losses: (L, S). pictures: by name.
        epochs: how many there will be.
        """
        self.epochs += 1
        left = (epochs - metrics['epoch']) * (time.monotonic() - self.start) / self.epochs
        self.write('metrics.jsonl', lambda: self.add_metrics(metrics))
        self.write('events', lambda: self.board.epoch(metrics, valid_losses, pictures))
        ap = f' | AP {metrics["AP"]:.3f}' if 'AP' in metrics else ''
        if unread := metrics.get('unread'):
            ap += f' ({unread} photo{"s" * (unread > 1)} unread)'
        skipped = f' | skipped {metrics["skipped"]}' if metrics['skipped'] else ''
        self.say(
            f'epoch {metrics["epoch"]}/{epochs} | {format_losses(losses)} | valid '
            f'{metrics["valid_objective"]:.3g}{ap}{skipped} | lr {metrics["lr"]:.3g} | '
            f'{metrics["images_per_second"]:.3g} img/s (data {100 * metrics["data_wait"]:.0f} %) | '
            f'eta {format_duration(left)}'
        )

    def add_metrics(self, metrics):
        path = self.run.metrics_path
        if broken := add_metrics(path, metrics):
            self.run.log(f'{path}: left out {broken} lines that are broken')
