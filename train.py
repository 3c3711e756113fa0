"""Train a network; everything of a run lives in exp/<name>/.

python train.py -e run1                          a new run of the task pose
python train.py -c run1                          go on where run1 stopped
python train.py -t quickstart -e quickstart      another task, see task/
python train.py -e small --set train.batchsize=8 model.nstack=2
torchrun --nproc-per-node 8 train.py -e run1     a process for each of 8 GPUs
python train.py -e new --init exp/run1           a new run that starts with the weights of run1,
                                                 the best where there are any, else the latest
"""

import argparse
import contextlib
import copy
import importlib
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data.coco_pose import ref
from data.coco_pose.photo import read_photo
from data.coco_pose.splits import trains_on_valid
from test import Predictor, aggregate, evaluate, group
from utils import dist
from utils.board import Board
from utils.checkpoint import load_first_weights, load_network, read_checkpoint, unlike
from utils.config import apply_settings, check_config, load_task
from utils.device import choose_device, choose_precision
from utils.draw import draw_prediction
from utils.errors import UserError, exit_code
from utils.loading import worker_count
from utils.run import Run, find_run
from utils.stop import Interrupted, Stopper

INPUTS = ('imgs', 'masks', 'keypoints', 'heatmaps')
SHOWN = 4  # validation photos that TensorBoard shows with their predictions
SKIPS = 10  # steps in a row whose losses may be not finite where train.on_nonfinite is 'skip'


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


class Training:
    """A run in progress on this rank: what a checkpoint holds, and how it moves on."""

    def __init__(self, run, config, checkpoint=None, launch=()):
        """Builds everything before anything is written. Raises UserError."""
        self.run, self.config, self.settings = run, config, config['train']
        check_shares(self.settings)
        self.device = choose_device()
        self.dtype, reason = choose_precision(self.settings['precision'], self.device)
        self.test_dtype, _ = choose_precision(config['test']['precision'], self.device)
        state = start_state(config) | (checkpoint or {})
        self.step, self.epoch, self.samples = state['step'], state['epoch'], state['samples']
        self.best, self.sums = state['best'], state['sums']
        self.weights = self.settings['loss_weights']
        self.problems = set()  # broken photos that have been reported
        self.unwritten = set()  # files whose last version could not be written
        provider = importlib.import_module(config['data_provider'])
        self.loaders = provider.init(config, self.samples)

        self.task = load_task(config['run']['task']).make_network(config)
        if checkpoint:
            load_network(self.task.network, checkpoint['state_dict'], run.checkpoint())
        anew = [] if checkpoint else self.load_init()
        self.task.to(self.device)
        self.replicas = spread(self.task, self.device)
        self.optimizer = torch.optim.Adam(self.task.parameters(), fused=True)
        if checkpoint:
            self.restore(checkpoint)
        if dist.rank() == 0:
            run.create(config, launch)
        self.board = Board(run.folder / 'events', self.weights, self.step)
        self.stopper = Stopper()
        self.introduce(reason)
        if 'init' in config['run'] and not checkpoint:
            self.say(f'starts with the weights of {config["run"]["init"]}')
        if anew:
            self.say(f'note: of another number of channels, thus new: {", ".join(anew)}')

    def load_init(self):
        """Puts the weights of --init into the network; the names of layers that stay new."""
        if 'init' not in self.config['run']:
            return []
        path = Path(self.config['run']['init'])
        return load_first_weights(self.task.network, read_checkpoint(path)['state_dict'], path)

    def restore(self, checkpoint):
        """Takes the optimizer and the random states from a checkpoint."""
        saved, path = checkpoint['optimizer'], self.run.checkpoint()
        params = list(self.task.parameters())
        of_params = [
            {'step': torch.zeros(()), 'exp_avg': param, 'exp_avg_sq': param} for param in params
        ]
        # Before the first step there is none of these.
        example = dict(enumerate(of_params)) if saved.get('state') != {} else {}
        problem = unlike(saved, {'state': example})
        if problem:
            raise UserError(
                f'{path} holds no optimizer state for this network ({problem}): it can be tested '
                f"('python test.py -c {self.run.name}') but not continued"
            )
        # Only what Adam has learnt comes from the file; how it works is this program's.
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict(own | {'state': {k: saved['state'][k] for k in example}})
        try:
            torch.set_rng_state(checkpoint['random']['cpu'])
            if checkpoint['random']['cuda'] and torch.cuda.is_available():
                torch.cuda.set_rng_state(checkpoint['random']['cuda'][0])
        except (RuntimeError, TypeError, AttributeError):
            raise UserError(f'{path} holds a random state that cannot be') from None

    def introduce(self, reason):
        """Says what explains a wrong run."""
        config, settings = self.config, self.settings
        parameters = sum(p.numel() for p in self.task.parameters())
        ranks, gpus = dist.world_size(), torch.cuda.device_count()
        if dist.active():
            where = f'{ranks} rank{"s" * (ranks > 1)} on {"GPUs" if gpus else "CPUs"}'
        else:
            where = f'{gpus} GPU{"s" * (gpus > 1)}' if gpus else 'CPU'
        if not gpus:
            where += f', {torch.get_num_threads()} threads'
        parts = ranks * settings['accumulate']
        batch = f'{settings["batchsize"]} images' + (
            f' ({ranks} ranks x {settings["accumulate"]} backward passes x '
            f'{settings["batchsize"] // parts})' if parts > 1 else ''
        )  # fmt: skip
        self.say(
            f'{self.run.folder}: {config["network"]}, {parameters:,} parameters\n'
            f'images: {len(self.loaders["train"].dataset):,} for training, '
            f'{len(self.loaders["valid"].dataset):,} for validation\n'
            f'{settings["epochs"]} epochs of {settings["train_iters"]} steps of '
            f'{batch}, {worker_count(settings["num_workers"])} workers, '
            f'learning rate {settings["learning_rate"]:g}\n'
            f'{where}, {reason}'
        )
        if config['model']['bn'] and parts > 1:
            of_all = ranks > 1 and gpus and settings['accumulate'] == 1
            self.say(
                'note: BatchNorm sees the images of '
                + ('all ranks together' if of_all else 'one rank and one backward pass at a time')
            )
        joints = ref.describe(ref.get_joints(config['data']))
        if joints:
            self.say(joints)
        if trains_on_valid(config['data']):
            self.say('note: validation uses the training photos; its AP measures memory')
        if self.step:
            self.say(f'continuing at step {self.step}, epoch {self.epoch + 1}')

    def say(self, text):
        """Prints, without disturbing a progress bar, and logs; rank 0 speaks for all."""
        if dist.rank() == 0:
            tqdm.write(text)
            sys.stdout.flush()
            self.write('log', lambda: self.run.log(text))

    def write(self, name, action):
        """Whether `action` could write a file: a full disk does not end a run, nor go unnoticed."""
        try:
            action()
        except OSError as error:
            self.unwritten.add(name)
            print(
                f'warning: {self.run.folder}/{name} is not up to date ({error.strerror or error}): '
                'make room; the next save tries again', file=sys.stderr, flush=True,
            )  # fmt: skip
            return False
        self.unwritten.discard(name)
        return True

    def save(self, which='checkpoint'):
        """Saves all that a resume needs to go on as if nothing had happened; whether it could."""
        if dist.rank() > 0:
            return True
        # Of this rank's GPU alone: asking the others would take memory on each of them.
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        state = {
            'state_dict': self.task.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
            'epoch': self.epoch,
            'samples': self.samples,
            'best': self.best,
            'sums': self.sums,
            'random': {'cpu': torch.get_rng_state(), 'cuda': cuda},
            'config': self.config,
        }
        return self.write(f'{which}.pth.tar', lambda: self.run.save(state, which))

    def next_batch(self, batches):
        """This rank's share of the next batch; names each broken photo in it once."""
        batch = next(batches)
        for problem in set(batch['problem']) - {''} - self.problems:
            self.problems.add(problem)
            text = f'warning: {problem}; another photo takes its place'
            # A photo can be broken on the disk of one machine alone, which rank 0 does not see.
            self.say(text) if dist.rank() == 0 else print(text, file=sys.stderr, flush=True)
        return batch

    def losses_of(self, batch):
        """Losses of a batch by name, each (B, S)."""
        inputs = {name: batch[name].to(self.device, non_blocking=True) for name in INPUTS}
        return self.replicas(**inputs, dtype=self.dtype)

    def table(self, losses):
        """Named losses (B, S) as their means over the images, (L, S)."""
        return torch.stack([losses[name].detach().mean(0) for name in self.weights])

    def objective(self, losses):
        """The weighted sum of named losses."""
        return sum(weight * losses[name] for name, weight in self.weights.items())

    def train_step(self, batch):
        """One step of Adam on this rank's share of a batch.

        Returns the losses' means (L, S), on the device, and whether the step was taken.
        """
        settings, passes = self.settings, self.settings['accumulate']
        skips = settings['on_nonfinite'] == 'skip'
        buffers = [buffer.clone() for buffer in self.task.buffers()] if skips else []
        self.optimizer.zero_grad()
        table = 0
        for number, part in enumerate(split(batch, passes), 1):
            with self.gradients_stay() if number < passes else contextlib.nullcontext():
                losses = self.losses_of(part)
                objective = self.objective({name: losses[name].mean() for name in self.weights})
                table = table + self.table(losses) / passes
                if skips and dist.any_rank(not objective.isfinite()):
                    for buffer, before in zip(self.task.buffers(), buffers, strict=True):
                        buffer.copy_(before)
                    return table, False
                (objective / passes).backward()
        if settings['clip_norm'] > 0:
            nn.utils.clip_grad_norm_(self.task.parameters(), settings['clip_norm'])
        for parameters in self.optimizer.param_groups:
            parameters['lr'] = learning_rate(settings, self.step)
        self.optimizer.step()
        return table, True

    def gradients_stay(self):
        """Within it backward adds to this rank's own gradients, for a later pass to exchange."""
        return self.replicas.no_sync() if dist.active() else contextlib.nullcontext()

    def read_losses(self, recent):
        """Adds the losses of recent steps to the epoch's sums; UserError where they are not finite.

        recent: per step its number, image ids (B,), losses (L, S) on the device, and whether the
        step was taken. Reading waits for the device, so it is done once per log line.
        """
        tables = dist.mean(torch.stack([table for _, _, table, _ in recent]).cpu())  # (N, L, S)
        for (step, image_ids, _, taken), table in zip(recent, tables, strict=True):
            if taken and table.isfinite().all():
                self.sums['losses'] += table
                self.sums['steps'] += 1
                self.sums['skipped_in_a_row'] = 0
                continue
            self.sums['skipped'] += 1
            self.sums['skipped_in_a_row'] += 1
            row = self.sums['skipped_in_a_row']
            values = show(self.named(table)).replace(' |', ',')
            found = f'losses are not finite at step {step}: {values}; images '
            found += f'{dist.gather(image_ids).tolist()}'
            if taken or row > SKIPS:
                raise UserError(
                    found + f' ({row} steps in a row)' * (row > 1) + '. The last checkpoint is '
                    'from before; lower train.learning_rate, set train.clip_norm, or look at '
                    'these images' + ("; train.on_nonfinite='skip' leaves out single steps" * taken)
                )
            self.say(f'warning: {found}; step skipped')

    def named(self, table):
        """The means over stacks of a table (L, S) by name."""
        return dict(zip(self.weights, table.mean(1).tolist(), strict=True))

    def mean_losses(self):
        """The epoch's losses so far (L, S)."""
        return self.sums['losses'] / max(self.sums['steps'], 1)

    def train_epoch(self, batches):
        """The steps that this epoch lacks. Returns images per second, and the share of waiting."""
        settings = self.settings
        self.task.train()
        first = self.epoch * settings['train_iters']
        last = first + settings['train_iters']
        bar = tqdm(
            total=settings['train_iters'], initial=self.step - first, leave=False,
            disable=None if dist.rank() == 0 else True, desc=f'epoch {self.epoch + 1}', unit='step',
        )  # fmt: skip
        start = told = saved = time.monotonic()
        samples, waited, recent = self.samples, 0.0, []
        while self.step < last:
            before = time.monotonic()
            batch = self.next_batch(batches)
            waited += time.monotonic() - before
            table, taken = self.train_step(batch)
            self.step += 1
            self.samples += settings['batchsize']
            recent.append((self.step, batch['image_id'], table, taken))
            bar.update()
            stopping = dist.any_rank(self.stopper.asked)
            if self.step % settings['log_iters'] == 0 or self.step == last or stopping:
                self.read_losses(recent)
                recent = []
                text = show(self.named(self.mean_losses()))
                bar.set_postfix_str(text)
                now = time.monotonic()
                if now - told > 30:
                    self.show_progress(bar, self.step - first, text)
                    told = now
                if now - saved > 60 * settings['save_minutes']:
                    self.save()
                    saved = time.monotonic()
            if stopping:
                raise Interrupted
        bar.close()
        seconds = max(time.monotonic() - start, 1e-9)
        return (self.samples - samples) / seconds, waited / seconds

    def show_progress(self, bar, step, text):
        """Shows the losses within an epoch: in TensorBoard, and as a line if there is no bar."""
        if bar.disable:
            self.say(f'  step {step}/{self.settings["train_iters"]} | {text}')
        if dist.rank() == 0:
            rate = learning_rate(self.settings, self.step - 1)
            self.write('events', lambda: self.board.progress(self.step, self.sums, rate))

    @torch.no_grad()
    def validate(self):
        """Mean losses (L, S) over valid_iters batches of validation; changes nothing."""
        self.task.eval()
        sums = torch.zeros_like(self.sums['losses'])
        batches = iter(self.loaders['valid'])
        for _ in range(self.settings['valid_iters']):
            sums += self.table(self.losses_of(self.next_batch(batches))).cpu()
        return dist.mean(sums / self.settings['valid_iters'])

    def measure_ap(self):
        """Single-scale COCO figures on the validation split, on rank 0; changes nothing.

        Beside them pictures by name: the first photos with predictions and heatmaps.
        """
        func = Predictor(self.task.network, self.config, self.device, self.test_dtype)
        split, settings = self.loaders['valid_split'], self.config['test']
        figures, *_ = evaluate(func, split)
        joints, pictures = split.joints, {}
        for number, image_id in enumerate(split.ids[: SHOWN if dist.rank() == 0 else 0]):
            photo = read_photo(split.path(number), split.sizes[number])
            det, tag, matrix = aggregate(photo, func, settings['scales']['single'])
            people, scores = group(det, tag, matrix, settings | {'refine': False}, joints.order)
            pictures[f'predictions/{image_id}'] = draw_prediction(
                photo, people, scores, det.cpu().numpy(), joints.names, joints.skeleton, matrix
            )
        return figures, pictures

    def loop(self):
        """Trains to the last epoch. Raises Interrupted, and UserError on a loss not finite."""
        settings = self.settings
        batches = iter(self.loaders['train'])
        started, first_epoch = time.monotonic(), self.epoch
        while self.epoch < settings['epochs']:
            rate, wait = self.train_epoch(batches)
            self.save()  # whatever happens to validation, the epoch's steps are done
            with self.stopper.at_once():
                number = self.epoch + 1
                due = settings['eval_epochs'] and number % settings['eval_epochs'] == 0
                valid = self.validate()
                figures, pictures = self.measure_ap() if due else ({}, {})
            per_epoch = (time.monotonic() - started) / (number - first_epoch)
            eta = per_epoch * (settings['epochs'] - number)
            self.end_epoch(valid, figures, pictures, rate, wait, eta)

    def end_epoch(self, valid_table, figures, pictures, rate, wait, eta):
        """Notes the figures of an epoch, and saves."""
        train, valid = self.named(self.mean_losses()), self.named(valid_table)
        skipped, lr = self.sums['skipped'], learning_rate(self.settings, self.step - 1)
        if dist.rank() == 0:
            self.write('events', lambda: self.board.progress(self.step, self.sums, lr))
        self.epoch += 1
        self.sums |= {'losses': torch.zeros_like(self.sums['losses']), 'steps': 0, 'skipped': 0}
        before = dict(self.best)
        if self.note_best(figures, self.objective(valid)) and not self.save('best'):
            self.best = before
        self.save()
        metrics = (
            {'epoch': self.epoch, 'step': self.step, 'images': self.samples, 'lr': lr}
            | train
            | {'objective': self.objective(train)}
            | {f'valid_{name}': value for name, value in valid.items()}
            | {'valid_objective': self.objective(valid), 'skipped': skipped}
            | {'images_per_second': rate, 'data_wait': wait}
            | figures
        )
        if dist.rank() == 0:
            self.write('metrics.jsonl', lambda: self.run.add_metrics(metrics))
            self.write('events', lambda: self.board.epoch(metrics, valid_table, pictures))
        ap = f' | AP {figures["AP"]:.3f}' if figures else ''
        skips = f' | skipped {skipped}' if skipped else ''
        self.say(
            f'epoch {self.epoch}/{self.settings["epochs"]} | {show(train)} | valid '
            f'{self.objective(valid):.3g}{ap}{skips} | lr {lr:.3g} | {rate:.3g} img/s '
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


def start_state(config):
    """What a checkpoint holds beside weights and config, as it is before the first step.

    samples: training images drawn so far, by all ranks. sums, over the epoch and all ranks: losses
    (L, S), the steps they are of, and those left out.
    """
    shape = len(config['train']['loss_weights']), config['model']['nstack']
    losses = torch.zeros(shape, dtype=torch.float64)
    return {
        'optimizer': {},
        'step': 0,
        'epoch': 0,
        'samples': 0,
        'best': {'AP': -1.0, 'valid': float('inf')},
        'sums': {'losses': losses, 'steps': 0, 'skipped': 0, 'skipped_in_a_row': 0},
        'random': {'cpu': torch.get_rng_state(), 'cuda': []},
    }


def check_shares(settings):
    """Raises UserError where a batch cannot be split evenly."""
    ranks, passes = dist.world_size(), settings['accumulate']
    if settings['batchsize'] % (ranks * passes):
        raise UserError(
            f'train.batchsize is {settings["batchsize"]}: expected a multiple of {ranks * passes}, '
            f'for {ranks} ranks x {passes} backward passes (train.accumulate)'
        )


def spread(task, device):
    """The task on all GPUs: of every rank under torchrun, else of this machine."""
    if dist.active():
        if device.type == 'cuda':  # nothing of the kind exists for CPUs
            nn.SyncBatchNorm.convert_sync_batchnorm(task)
        gpus = [device.index] if device.type == 'cuda' else None
        # Before every pass rank 0's BatchNorm statistics go to all: they count on one rank alone.
        return nn.parallel.DistributedDataParallel(task, device_ids=gpus)
    return nn.DataParallel(task) if torch.cuda.device_count() > 1 else task


def split(batch, passes):
    """The images of a batch in `passes` equal parts."""
    parts = {name: batch[name].chunk(passes) for name in INPUTS}
    return [{name: parts[name][i] for name in INPUTS} for i in range(passes)]


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


def choose_run(args, run, launch):
    """The config of a run, and whether it continues. Raises UserError; writes nothing.

    launch: what dist.launch_marks says, by which torchrun's restarts are known: there the command
    of a new run means to go on with it.
    """
    resumes = args.continue_exp is not None
    if resumes and args.init:
        raise UserError('--init is for a new run (-e); -c continues one with its own weights')
    if not resumes and run.checkpoint().exists():
        resumes = run.is_of_launch(launch)
        if not resumes:
            raise UserError(
                f"{run.folder} has a checkpoint: continue it with 'python train.py -c {run.name}', "
                'or choose another name'
            )
    if resumes:
        run.require()
        config = run.config(args.task)
    else:
        config = copy.deepcopy(load_task(args.task).__config__) | {'run': {'task': args.task}}
    made_for = len(ref.joint_names(config['data']))
    if args.init and not resumes:
        config, made_for = start_from(find_run(args.init), config)
    config = apply_settings(config, args.set)
    if not resumes:
        check_config(config)
        provider = importlib.import_module(config['data_provider'])
        # What was set wins over what follows from the joints.
        config = apply_settings(provider.prepare(config, made_for), args.set)
    check_config(config, len(ref.get_joints(config['data']).names))
    return config, resumes


def open_run(args):
    """The run, its config, its checkpoint or None, and the marks of the launch.

    Rank 0 reads, and the others get what it read. Raises UserError; writes nothing.
    """
    run = Run(args.exp if args.continue_exp is None else args.continue_exp)
    launch = dist.launch_marks()
    config, resumes = dist.share(lambda: choose_run(args, run, launch))
    checkpoint = read_checkpoint(run.checkpoint()) if resumes else None
    state = start_state(config)
    if resumes and not state.keys() <= checkpoint.keys():
        raise UserError(
            f'{run.checkpoint()} holds weights but no training state: it can be tested '
            f"('python test.py -c {run.name}') but not continued; 'python train.py -e NEW --init "
            f"{run.folder}' starts a new run with it"
        )
    if resumes and (problem := unlike(checkpoint, state)):
        raise UserError(f'{run.checkpoint()} holds a training state whose {problem} cannot be')
    return run, config, checkpoint, launch


def start_from(source, config):
    """The config of a new run with the network of the run `source`, whose weights it takes.

    Beside it the number of joints that this network is made for.
    """
    its = source.config(config['run']['task'])
    run = config['run'] | {'init': str(source.weights())}
    config = config | {'network': its['network'], 'model': its['model'], 'run': run}
    return config, len(ref.joint_names(its['data']))


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-t', '--task', default='pose', help='a module in task/')
    name = parser.add_mutually_exclusive_group()
    name.add_argument('-e', '--exp', default='pose', help='name of a new run')
    name.add_argument('-c', '--continue_exp', help='name of a run to continue')
    parser.add_argument('--init', metavar='exp/NAME', help='weights that a new run starts with')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='KEY=VALUE')
    return parser.parse_args()


def main():
    """Returns the exit code: 1 where the end of the run is not on the disk."""
    args = parse_args()
    dist.start()
    training = Training(*open_run(args))
    name, code = training.run.name, 0
    try:
        training.loop()
    except Interrupted:
        saved = training.save()
        asked = training.stopper.asked
        # A scheduler that asked for a stop got what it wanted; after Ctrl-C nothing should follow.
        code = 0 if asked != signal.SIGINT else 128 + asked
        training.say(
            f'{asked.name if asked else "another rank stopped"}: '
            + (f'saved after step {training.step}' if saved else 'NOT saved')
            + f"; continue with 'python train.py -c {name}'"
        )
    else:
        training.say(f"done; measure it with 'python test.py -c {name} -m single'")
    if training.unwritten:
        names = ', '.join(sorted(training.unwritten))
        print(f'error: {training.run.folder} lacks the latest {names}', file=sys.stderr)
        return 1
    return code


if __name__ == '__main__':
    sys.exit(exit_code(main))
