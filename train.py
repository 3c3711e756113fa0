"""Train a network; everything of a run lives in exp/<name>/.

python train.py -e run1                          a new run of the task pose
python train.py -c run1                          go on where run1 stopped
python train.py -t quickstart -e quickstart      another task, see task/
python train.py -e small --set train.batchsize=8 model.nstack=2
"""

import argparse
import contextlib
import copy
import importlib
import signal
import sys
import time

import torch
from torch import nn
from tqdm import tqdm

from data.coco_pose import dp, ref
from test import Predictor, evaluate
from utils.device import choose_device, choose_precision
from utils.run import (
    Run,
    UserError,
    apply_settings,
    check_config,
    exit_code,
    load_network,
    load_task,
    read_checkpoint,
)

TRAINING_STATE = {'optimizer', 'step', 'epoch', 'samples', 'best', 'totals', 'random'}
INPUTS = ('imgs', 'masks', 'keypoints', 'heatmaps')


class Interrupted(Exception):
    """The user, or the scheduler, wants the run to stop."""


class Stopper:
    """Turns Ctrl-C and SIGTERM into an exception at a moment when nothing is lost.

    The first signal waits for the end of the step; a second one of its kind kills as usual.
    """

    def __init__(self):
        self.asked = None
        self.waiting = True  # whether a signal waits for `check`
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.asked = signal.Signals(number)
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
        if hasattr(signal, 'SIGCHLD'):
            # A scheduler's signal ends the workers, too: their death is no error any more.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self.waiting:
            raise Interrupted

    def check(self):
        if self.asked:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self):
        """Within it a signal need not wait, since nothing is being changed."""
        self.check()
        self.waiting = False
        try:
            yield
        finally:
            self.waiting = True


def learning_rate(settings, step):
    """The rate of a step: a rise over warmup_iters, then constant, then down to decay_rate."""
    base, final = settings['learning_rate'], settings['decay_rate']
    start, end = settings['decay_iters']
    if step < settings['warmup_iters']:
        return base * (step + 1) / settings['warmup_iters']
    if step >= end:
        return final
    if step < start:
        return base
    return base + (final - base) * (step - start) / (end - start)


def read_losses(recent, names):
    """The sums of the losses of recent steps; UserError where one of them is not finite.

    recent: (step, image ids, (losses,) on the device) per step. Reading waits for the device, so it
    is done once per log line.
    """
    table = torch.stack([losses for _, _, losses in recent]).cpu()
    for (step, image_ids, _), row in zip(recent, table, strict=True):
        if not row.isfinite().all():
            values = ', '.join(f'{n} {v:g}' for n, v in zip(names, row.tolist(), strict=True))
            raise UserError(
                f'losses are not finite at step {step}: {values}; images {image_ids.tolist()}. '
                'The last checkpoint is from before; lower train.learning_rate, set '
                'train.clip_norm, or look at these images'
            )
    return table.double().sum(0)


class Training:
    """A run in progress: what a checkpoint holds, and how it moves on."""

    def __init__(self, run, config, checkpoint=None):
        """Builds everything before anything is written. Raises UserError and DataError."""
        self.run, self.config, self.settings = run, config, config['train']
        self.device = choose_device()
        self.dtype, reason = choose_precision(self.settings['precision'], self.device)
        self.test_dtype, _ = choose_precision(config['test']['precision'], self.device)
        checkpoint = checkpoint or {}
        self.step, self.epoch = checkpoint.get('step', 0), checkpoint.get('epoch', 0)
        self.samples = checkpoint.get('samples', 0)  # training images drawn so far
        self.best = checkpoint.get('best', {'AP': -1.0, 'valid': float('inf')})
        self.problems = set()  # broken photos that have been reported
        provider = importlib.import_module(config['data_provider'])
        self.loaders = provider.init(config, self.samples)

        self.task = load_task(config['run']['task']).make_network(config)
        if checkpoint:
            load_network(self.task.network, checkpoint['state_dict'], run.checkpoint())
        self.task.to(self.device)
        gpus = torch.cuda.device_count()
        self.replicas = nn.DataParallel(self.task) if gpus > 1 else self.task
        self.optimizer = torch.optim.Adam(self.task.parameters(), fused=True)
        self.weights = self.settings['loss_weights']
        self.totals = torch.zeros(len(self.weights), dtype=torch.float64)  # sums over the epoch
        if checkpoint:
            try:
                self.optimizer.load_state_dict(checkpoint['optimizer'])
            except (KeyError, ValueError):
                raise UserError(
                    f'{run.checkpoint()} holds no optimizer state for this network: it can be '
                    f"tested ('python test.py -c {run.name}') but not continued"
                ) from None
            self.totals = checkpoint['totals']
            torch.set_rng_state(checkpoint['random']['cpu'])
            if len(checkpoint['random']['cuda']) == gpus:
                torch.cuda.set_rng_state_all(checkpoint['random']['cuda'])
        run.create(config)
        self.stopper = Stopper()
        self.introduce(gpus, reason)

    def introduce(self, gpus, reason):
        """Says what explains a wrong run."""
        config, settings = self.config, self.settings
        parameters = sum(p.numel() for p in self.task.parameters())
        where = (
            f'{gpus} GPU{"s" * (gpus > 1)}' if gpus else f'CPU, {torch.get_num_threads()} threads'
        )
        self.say(
            f'{self.run.folder}: {config["network"]}, {parameters:,} parameters\n'
            f'images: {len(self.loaders["train"].dataset):,} for training, '
            f'{len(self.loaders["valid"].dataset):,} for validation\n'
            f'{settings["epochs"]} epochs of {settings["train_iters"]} steps of '
            f'{settings["batchsize"]} images, {dp.worker_count(settings["num_workers"])} workers, '
            f'learning rate {settings["learning_rate"]:g}\n'
            f'{where}, {reason}'
        )
        joints = ref.describe(ref.joints_of(config['data']))
        if joints:
            self.say(joints)
        if ref.trains_on_valid(config['data']):
            self.say('note: validation uses the training photos; its AP measures memory')
        if self.step:
            self.say(f'continuing at step {self.step}, epoch {self.epoch + 1}')

    def say(self, text):
        """Prints, without disturbing a progress bar, and logs."""
        tqdm.write(text)
        self.run.log(text)
        sys.stdout.flush()

    def save(self, which='checkpoint'):
        """Saves all that a resume needs to go on as if nothing had happened."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        state = {
            'state_dict': self.task.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
            'epoch': self.epoch,
            'samples': self.samples,
            'best': self.best,
            'totals': self.totals,
            'random': {'cpu': torch.get_rng_state(), 'cuda': cuda},
            'config': self.config,
        }
        self.run.save(state, which)

    def losses_of(self, batch):
        """Losses of a batch by name, each (B, S)."""
        inputs = {name: batch[name].to(self.device, non_blocking=True) for name in INPUTS}
        return self.replicas(**inputs, dtype=self.dtype)

    def train_step(self, batch):
        """One step of Adam. Returns the mean losses (L,), on the device."""
        losses = self.losses_of(batch)
        means = {name: losses[name].mean() for name in self.weights}
        objective = sum(self.weights[name] * means[name] for name in self.weights)
        self.optimizer.zero_grad()
        objective.backward()
        if self.settings['clip_norm'] > 0:
            nn.utils.clip_grad_norm_(self.task.parameters(), self.settings['clip_norm'])
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.settings, self.step)
        self.optimizer.step()
        return torch.stack([mean.detach() for mean in means.values()])

    def train_epoch(self, batches):
        """The steps that this epoch lacks. Returns images per second, and the share of waiting."""
        settings, names = self.settings, list(self.weights)
        self.task.train()
        first, last = (
            self.epoch * settings['train_iters'],
            (self.epoch + 1) * settings['train_iters'],
        )
        bar = tqdm(
            total=settings['train_iters'], initial=self.step - first, disable=None, leave=False,
            desc=f'epoch {self.epoch + 1}', unit='step',
        )  # fmt: skip
        start = told = saved = time.monotonic()
        samples, waited, recent = self.samples, 0.0, []
        while self.step < last:
            before = time.monotonic()
            try:
                batch = next(batches)
            except RuntimeError:  # of a worker that died
                if self.stopper.asked is None:
                    raise
                self.totals += read_losses(recent, names) if recent else 0
                self.stopper.check()
            waited += time.monotonic() - before
            for problem in set(batch['problem']) - {''} - self.problems:
                self.problems.add(problem)
                self.say(f'warning: {problem}; another photo takes its place')
            losses = self.train_step(batch)
            self.step += 1
            self.samples += settings['batchsize']
            recent.append((self.step, batch['image_id'], losses))
            bar.update()
            stopping = self.stopper.asked is not None
            if self.step % settings['log_iters'] == 0 or self.step == last or stopping:
                self.totals += read_losses(recent, names)
                recent = []
                means = self.totals / (self.step - first)
                text = show(dict(zip(names, means.tolist(), strict=True)))
                bar.set_postfix_str(text)
                now = time.monotonic()
                if bar.disable and now - told > 30:
                    self.say(f'  step {self.step - first}/{settings["train_iters"]} | {text}')
                    told = now
                if now - saved > 60 * settings['save_minutes']:
                    self.save()
                    saved = time.monotonic()
            self.stopper.check()
        bar.close()
        seconds = max(time.monotonic() - start, 1e-9)
        return (self.samples - samples) / seconds, waited / seconds

    @torch.no_grad()
    def validate(self):
        """Mean losses by name over valid_iters batches of validation; changes nothing."""
        self.task.eval()
        sums = torch.zeros(len(self.weights), dtype=torch.float64)
        for batch in self.loaders['valid']:
            losses = self.losses_of(batch)
            sums += torch.stack([losses[name].mean() for name in self.weights]).cpu()
        means = (sums / self.settings['valid_iters']).tolist()
        return dict(zip(self.weights, means, strict=True))

    def measure_ap(self):
        """Single-scale COCO figures on the validation split; changes nothing."""
        func = Predictor(self.task.network, self.config, self.device, self.test_dtype)
        figures, *_ = evaluate(func, self.loaders['valid_split'])
        return figures

    def objective(self, losses):
        """The weighted sum of named losses."""
        return sum(weight * losses[name] for name, weight in self.weights.items())

    def loop(self):
        """Trains to the last epoch. Raises Interrupted, and UserError on a loss not finite."""
        settings = self.settings
        batches = iter(self.loaders['train'])
        started, first_epoch = time.monotonic(), self.epoch
        while self.epoch < settings['epochs']:
            rate, wait = self.train_epoch(batches)
            with self.stopper.at_once():
                number = self.epoch + 1
                due = settings['eval_epochs'] and number % settings['eval_epochs'] == 0
                try:
                    valid = self.validate()
                    figures = self.measure_ap() if due else {}
                except ref.DataError:
                    self.save()  # a broken validation photo must not cost the epoch
                    raise
            train = dict(
                zip(self.weights, (self.totals / settings['train_iters']).tolist(), strict=True)
            )
            self.epoch, self.totals = number, torch.zeros_like(self.totals)
            improved = self.note_best(figures, self.objective(valid))
            self.save()
            if improved:
                self.save('best')
            lr = learning_rate(settings, self.step - 1)
            self.run.add_metrics(
                {'epoch': number, 'step': self.step, 'images': self.samples, 'lr': lr}
                | train
                | {'objective': self.objective(train)}
                | {f'valid_{name}': value for name, value in valid.items()}
                | {'valid_objective': self.objective(valid)}
                | {'images_per_second': rate, 'data_wait': wait}
                | figures
            )
            left = settings['epochs'] - number
            eta = (time.monotonic() - started) / (number - first_epoch) * left
            ap = f' | AP {figures["AP"]:.3f}' if figures else ''
            self.say(
                f'epoch {number}/{settings["epochs"]} | {show(train)} | valid '
                f'{self.objective(valid):.3g}{ap} | lr {lr:.3g} | {rate:.3g} img/s '
                f'(data {100 * wait:.0f} %) | eta {duration(eta)}'
            )

    def note_best(self, figures, valid):
        """Whether this epoch is the best so far: by AP, or by validation loss before any AP."""
        if figures:
            better = figures['AP'] > self.best['AP']
            self.best['AP'] = max(self.best['AP'], figures['AP'])
        else:
            better = self.best['AP'] < 0 and valid < self.best['valid']
        self.best['valid'] = min(self.best['valid'], valid)
        return better


def show(losses):
    """'detection 0.00123 | push 0.041 | pull 0.038'."""
    return ' | '.join(f'{name} {value:.3g}' for name, value in losses.items())


def duration(seconds):
    """A time span in its two largest units: '2 d 4 h', '3 min 20 s'."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [(days, 'd'), (hours, 'h'), (minutes, 'min'), (seconds, 's')]
    first = next((i for i, (value, _) in enumerate(parts) if value), 3)
    return ' '.join(f'{value} {unit}' for value, unit in parts[first : first + 2])


def open_run(args):
    """The run, its config and for -c its checkpoint. Raises UserError; writes nothing."""
    resumes = args.continue_exp is not None
    run = Run(args.continue_exp if resumes else args.exp)
    if resumes:
        checkpoint = read_checkpoint(run.require())
        if not TRAINING_STATE <= checkpoint.keys():
            raise UserError(
                f'{run.checkpoint()} holds weights but no training state: it can be tested '
                f"('python test.py -c {run.name}') but not continued"
            )
        config = run.config(args.task)
    else:
        if run.checkpoint().exists():
            raise UserError(
                f"{run.folder} has a checkpoint: continue it with 'python train.py -c {run.name}', "
                'or choose another name'
            )
        checkpoint = None
        config = copy.deepcopy(load_task(args.task).__config__) | {'run': {'task': args.task}}
    made_for = len(ref.names_of(config['data']))
    config = apply_settings(config, args.set)
    if not resumes:
        check_config(config)
        provider = importlib.import_module(config['data_provider'])
        # What was set wins over what follows from the joints.
        config = apply_settings(provider.with_joints(config, made_for), args.set)
    check_config(config, len(ref.joints_of(config['data']).names))
    return run, config, checkpoint


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-t', '--task', default='pose', help='a module in task/')
    name = parser.add_mutually_exclusive_group()
    name.add_argument('-e', '--exp', default='pose', help='name of a new run')
    name.add_argument('-c', '--continue_exp', help='name of a run to continue')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='KEY=VALUE')
    return parser.parse_args()


def main():
    training = Training(*open_run(parse_args()))
    name = training.run.name
    try:
        training.loop()
    except Interrupted:
        training.save()
        asked = training.stopper.asked
        training.say(
            f'{asked.name}: saved after step {training.step}; continue with '
            f"'python train.py -c {name}'"
        )
        sys.exit(128 + asked)
    training.say(f"done; measure it with 'python test.py -c {name} -m single'")


if __name__ == '__main__':
    sys.exit(exit_code(main, ref.DataError))
