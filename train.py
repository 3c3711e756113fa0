"""Train a network; everything of a run lives in exp/<name>/.

python train.py -e run1                          a new run of the task pose
python train.py -c run1                          go on where run1 stopped
python train.py -t quickstart -e quickstart      another task, see task/
python train.py -e small --set train.batchsize=8 model.nstack=2
torchrun --nproc-per-node 8 train.py -e run1     a process for each of 8 GPUs
python train.py -e new --init exp/run1           a new run with the (best) weights of run1
"""

import contextlib
import copy
import importlib
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from torch import nn

from data.coco_pose import ref, splits
from data.coco_pose.results import compare
from test import Predictor, aggregate, evaluate
from utils import dist
from utils.checkpoint import check_plain, read_checkpoint
from utils.config import apply_settings, check_config, check_shares, load_task
from utils.device import choose_device, choose_precision, spread
from utils.draw import draw_heatmaps, stacked
from utils.errors import UserError, exit_code
from utils.optimizer import make_optimizer
from utils.report import Report, describe, format_losses
from utils.run import Run, find_run
from utils.state import State
from utils.stop import Interrupted, Stopper
from utils.weights import load_network

INPUTS = ('imgs', 'masks', 'keypoints', 'heatmaps')
PICTURES = 4  # validation photos that TensorBoard shows with their predictions
MOST_SKIPS = 10  # steps in a row that train.on_nonfinite='skip' leaves out


def learning_rate(settings, step):
    """The rate of a step: a rise over warmup_iters, then constant, then down to decay_rate."""
    base, final = settings['learning_rate'], settings['decay_rate']
    start, end = settings['decay_iters']
    if step < settings['warmup_iters']:
        return base * (step + 1) / settings['warmup_iters']
    if step >= end:
        return final
    return base if step < start else base + (final - base) * (step - start) / (end - start)


def weighted_sum(losses, weights):
    """The objective: named losses times their weights, train.loss_weights."""
    return sum(weight * losses[name] for name, weight in weights.items())


def batch_means(losses, weights):
    """Named losses (B, S) as their means over the images, (L, S), in the order of the weights."""
    return torch.stack([losses[name].detach().mean(0) for name in weights])


def split(batch, passes, model):
    """A batch's tensors in `passes` equal parts, on the device of the model."""
    device = next(model.parameters()).device
    tensors = {name: batch[name].to(device, non_blocking=True).chunk(passes) for name in INPUTS}
    return [{name: tensors[name][i] for name in INPUTS} for i in range(passes)]


def train_step(model, optimizer, scaler, batch, lr, settings, dtype):
    """One step on this rank's share of a batch. settings: the config's 'train'.

    scaler: a GradScaler, which only float16 needs. Returns, on the device, the mean losses (L, S)
    and the norm of the gradients, and whether the step was applied: with float16 or
    train.on_nonfinite='skip' it is not where either is not finite on any rank, and then the
    weights, the optimizer and BatchNorm's statistics stay as they were.
    """
    weights, passes = settings['loss_weights'], settings['accumulate']
    skips = settings['on_nonfinite'] == 'skip' or scaler.is_enabled()
    buffers = [buffer.clone() for buffer in model.buffers()] if skips else []
    optimizer.zero_grad()
    means = 0
    for number, part in enumerate(split(batch, passes, model), 1):
        # Ranks exchange their gradients in the last pass; until then each adds up its own.
        waits = number < passes and isinstance(model, nn.parallel.DistributedDataParallel)
        with model.no_sync() if waits else contextlib.nullcontext():
            losses = model(**part, dtype=dtype)  # (B, S) each
            objective = weighted_sum({name: losses[name].mean() for name in weights}, weights)
            scaler.scale(objective / passes).backward()
        means = means + batch_means(losses, weights) / passes
    scaler.unscale_(optimizer)
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if skips and dist.any_rank(not (means.isfinite().all() and norm.isfinite())):
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        scaler.update()
        return means, norm, False
    if settings['clip_norm'] > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), settings['clip_norm'], norm)
    for parameters in optimizer.param_groups:
        parameters['lr'] = lr
    scaler.step(optimizer)
    scaler.update()
    return means, norm, True


def add_losses(state, recent, report):
    """Adds the losses of recent steps to the epoch's sums; UserError where they are not finite.

    recent: of each step its number, its image ids (B,), and what train_step returned. Reading that
    waits for the device, so it is done once per log line.
    """
    steps, image_ids, losses, norms, applied = zip(*recent, strict=True)
    losses = dist.mean(torch.stack(losses).cpu())  # (N, L, S)
    norms = dist.mean(torch.stack(norms).cpu())  # (N,)
    for i, step in enumerate(steps):
        finite = losses[i].isfinite().all()
        if applied[i] and finite and norms[i].isfinite():
            state.add_step(losses[i])
            continue
        in_a_row = state.skip_step()
        if finite and state.scaler.is_enabled() and in_a_row <= MOST_SKIPS:
            continue  # float16's range was exceeded: the scaler has lowered its factor
        found = (
            f'{"gradients" if finite else "losses"} are not finite at step {step}: '
            f'{format_losses(state.named(losses[i])).replace(" |", ",")}; '
            f'images {dist.gather(image_ids[i]).tolist()}'
        )
        stop = state.config['train']['on_nonfinite'] == 'stop'
        if applied[i] or (stop and not finite) or in_a_row > MOST_SKIPS:
            raise UserError(
                found + f' ({in_a_row} steps in a row)' * (in_a_row > 1) + '. The last checkpoint '
                'is from before; lower train.learning_rate, set train.clip_norm, or look at these '
                'images' + "; train.on_nonfinite='skip' leaves out single steps" * stop
            )
        report.say(f'warning: {found}; step skipped')


def train_epoch(model, batches, state, report, stopper):
    """The steps that this epoch lacks. Returns how fast they were, as figures by name."""
    settings = state.config['train']
    model.train()
    last = (state.epoch + 1) * settings['train_iters']
    report.begin_epoch(state.epoch + 1, settings['train_iters'], last - state.step)
    start = time.monotonic()
    samples, waited, recent = state.samples, 0.0, []
    while state.step < last:
        before = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - before
        report.check_photos(batch)
        lr = learning_rate(settings, state.step)
        losses, norm, applied = train_step(
            model, state.optimizer, state.scaler, batch, lr, settings, state.dtype
        )
        state.advance(settings['batchsize'], applied)
        recent.append((state.step, batch['image_id'], losses, norm, applied))
        report.step(state)
        stopping = dist.any_rank(stopper.asked)
        if state.step % settings['log_iters'] == 0 or state.step == last or stopping:
            add_losses(state, recent, report)
            recent = []
            report.progress(state, lr)
            if report.save_due(settings['save_minutes']):
                save(state, report)
        if stopping:
            raise Interrupted
    report.bar.close()
    seconds = max(time.monotonic() - start, 1e-9)
    speed = (state.samples - samples) / seconds
    return {'images_per_second': speed, 'data_wait': waited / seconds}


@torch.no_grad()
def validate(model, loader, settings, dtype, report):
    """Mean losses (L, S) over valid_iters batches of validation; changes nothing."""
    model.eval()
    sums = 0
    for batch in loader:
        report.check_photos(batch)
        (inputs,) = split(batch, 1, model)
        means = batch_means(model(**inputs, dtype=dtype), settings['loss_weights'])
        sums = sums + means.cpu().double()
    return dist.mean(sums / settings['valid_iters'])


def measure_ap(network, config, split):
    """Single-scale COCO figures on the validation split, on rank 0; changes nothing.

    Beside them pictures by name: the first photos with predictions, truth and heatmaps.
    """
    device, settings = next(network.parameters()).device, config['test']
    func = Predictor(network, config, device, choose_precision(settings['precision'], device)[0])
    figures, _, evaluation, _ = evaluate(func, split)
    pictures = {}
    for number, image_id in enumerate(split.ids[: PICTURES if dist.rank() == 0 else 0]):
        try:
            photo = split.read(number)
        except UserError:  # which evaluate has said
            continue
        det, _, matrix = aggregate(photo, func, settings['scales']['single'])
        people = compare(photo, split, number, evaluation, settings['detection_val'])
        heatmaps = draw_heatmaps(photo, det.cpu().numpy(), split.joints.names, matrix, side=200)
        pictures[f'predictions/{image_id}'] = stacked([people, heatmaps])
    return figures, pictures


def save(state, report):
    """Saves all that a resume needs to go on as if nothing had happened; whether it could."""
    report.saved = time.monotonic()
    return report.write('checkpoint.pth.tar', lambda: report.run.save(state.to_dict()))


def train(model, loaders, state, report, stopper):
    """Trains to the last epoch. Raises Interrupted, and UserError on a loss that is not finite."""
    settings = state.config['train']
    weights, every = settings['loss_weights'], settings['eval_epochs']
    batches = iter(loaders['train'])
    while state.epoch < settings['epochs']:
        speed = train_epoch(model, batches, state, report, stopper)
        measures_ap = every and (state.epoch + 1) % every == 0
        if measures_ap or report.save_due(settings['save_minutes']):
            save(state, report)  # whatever happens to validation, the epoch's steps are done
        with stopper.at_once(), state.tested_weights():
            valid_losses = validate(model, loaders['valid'], settings, state.dtype, report)
            figures, pictures = {}, {}
            if measures_ap:
                figures, pictures = measure_ap(state.network, state.config, loaders['valid_split'])

        losses, valid = state.losses(), state.named(valid_losses)
        metrics = {
            'epoch': state.epoch + 1,
            'step': state.step,
            'images': state.samples,
            'lr': learning_rate(settings, state.step - 1),
            **losses,
            'objective': weighted_sum(losses, weights),
            **{f'valid_{name}': value for name, value in valid.items()},
            'valid_objective': weighted_sum(valid, weights),
            'skipped': state.sums['skipped'],
            **speed,
            **figures,
        }
        state.end_epoch()
        best = dict(state.best)
        if state.is_best(figures, metrics['valid_objective']) and not report.write(
            'best.pth.tar', lambda: report.run.save(state.tested(), 'best')
        ):
            state.best = best
        if state.epoch == settings['epochs']:
            save(state, report)
        report.end_epoch(metrics, losses, valid_losses, pictures, settings['epochs'])


def prepare(args):
    """Builds all that training needs, then makes the folder of the run. Raises UserError.

    Returns the model, on its devices and with its losses, the loaders, the State and the Report.
    """
    run = Run(args.exp if args.continue_exp is None else args.continue_exp)
    launch = dist.launch_marks()
    # Rank 0 reads, and the others get what it read.
    config, resumes = dist.share(lambda: choose_config(args, run, launch))
    init = None if resumes else config['run'].get('init')
    check_shares(config['train'])
    device = choose_device(config['train'])
    dtype, precision = choose_precision(config['train']['precision'], device)
    task = load_task(config['run']['task']).make_network(config)
    network, new_layers = task.network, []
    if resumes:
        for param in network.parameters():
            param.untyped_storage().resize_(0)  # its first weights make room for the file
        checkpoint = read_checkpoint(run.checkpoint())
        # The network's own, behind the average if there is one.
        weights = checkpoint.pop('own_weights', None) or checkpoint.pop('state_dict')
        check_plain(weights, run.checkpoint())
        load_network(network, weights, run.checkpoint())
        del weights
    elif init:
        weights = read_checkpoint(Path(init))['state_dict']
        new_layers = load_network(network, weights, init, any_outputs=True)
    model = spread(task, device, config['train']['compile'], equal=resumes)
    state = State(network, make_optimizer(task, config['train']), config, dtype)
    if resumes:
        state.load(checkpoint, run.checkpoint())
    loaders = importlib.import_module(config['data_provider']).init(config, state.samples)
    report = Report(run, config['train']['loss_weights'], state.step)
    if dist.rank() == 0:  # which looks at some photos for the notes
        run.create(config, launch, new=not resumes)
        notes = (
            describe(run, config, network, loaders, device, precision),
            *ref.describe(config),
            *splits.describe(loaders['train'].dataset.split),
            *splits.describe(loaders['valid_split']),
            'note: AP will be that on the training photos' * splits.trains_on_valid(config['data']),
            f'continuing at step {state.step}, epoch {state.epoch + 1}' * (state.step > 0),
            f'starts with the weights of {init}' * bool(init),
            f'note: of other channels, thus new: {", ".join(new_layers)}' * bool(new_layers),
        )
        report.say('\n'.join(dict.fromkeys(filter(None, notes))))
    return model, loaders, state, report


def choose_config(args, run, launch):
    """The config of a run, and whether it continues, locked then. Raises UserError.

    launch: see dist.launch_marks. After a restart by torchrun the command of a new run goes on.
    """
    resumes = args.continue_exp is not None
    if resumes and args.init:
        raise UserError('--init is for a new run (-e); -c continues one with its own weights')
    if not resumes and run.checkpoint().exists():
        resumes = run.is_of_launch(launch)
    if resumes:
        run.require()
        run.lock()
    else:
        run.refuse_checkpoint()
    config = apply_settings(run.config(args.task) if resumes else new_config(args), args.set)
    check_config(config, len(ref.get_joints(config['data']).names))
    return config, resumes


def new_config(args):
    """The config of a new run, with what follows from its annotations and from --init."""
    config = copy.deepcopy(load_task(args.task).__config__) | {'run': {'task': args.task}}
    joint_count = len(ref.joint_names(config['data']))  # that the network is made for
    if args.init:
        source = find_run(args.init, anywhere=True)
        saved = source.config(args.task)
        config |= {'network': saved['network'], 'model': saved['model']}
        config['run']['init'] = str(source.weights())
        joint_count = len(ref.joint_names(saved['data']))
    config = apply_settings(config, args.set)
    check_config(config)
    return importlib.import_module(config['data_provider']).prepare(config, joint_count)


def parse_args():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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
    model, loaders, state, report = prepare(args)
    stopper, name, code = Stopper(), report.run.name, 0
    try:
        train(model, loaders, state, report, stopper)
    except Interrupted:
        saved = save(state, report)
        asked = stopper.asked
        # A scheduler that asked for a stop got what it wanted; after Ctrl-C nothing should follow.
        code = 0 if asked != signal.SIGINT else 128 + asked
        report.say(
            f'{asked.name if asked else "another rank stopped"}: '
            + (f'saved after step {state.step}' if saved else 'NOT saved')
            + f"; continue with 'python train.py -c {name}'"
        )
    else:
        report.say(f"done; measure it with 'python test.py -c {name} -m single'")
    if names := ', '.join(sorted(report.outdated)):
        print(f'error: {report.run.folder} lacks the latest {names}', file=sys.stderr)
        return 1
    return code


if __name__ == '__main__':
    sys.exit(exit_code(main))
