"""How far a run has come: what its checkpoint holds."""

import contextlib
import math

import torch

from utils.checkpoint import is_plain
from utils.config import MOST
from utils.ema import Ema
from utils.errors import UserError
from utils.optimizer import example_state
from utils.weights import bare_names


class State:
    """The network, its optimizer, and how far training has come: all that a resume needs.

    dtype: what the network computes in; float16 needs the scaler of the gradients.
    step, epoch: how many are complete. samples: training images drawn so far, by all ranks. best:
    figures of the best checkpoint. sums: of this epoch over all ranks, the losses (L, S) in the
    order of train.loss_weights, the number of steps they were added up over, and of those skipped.
    """

    def __init__(self, network, optimizer, config, dtype):
        self.network, self.optimizer = network, optimizer
        self.config, self.dtype = config, dtype
        device = next(network.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        decay = config['train']['ema']
        self.ema = Ema(network, decay) if decay else None
        self.step = self.epoch = self.samples = 0
        self.best = {'AP': -1.0, 'valid': float('inf')}
        shape = len(config['train']['loss_weights']), config['model']['nstack']
        losses = torch.zeros(shape, dtype=torch.float64)
        self.sums = {'losses': losses, 'steps': 0, 'skipped': 0, 'skipped_in_a_row': 0}

    def progress(self):
        """The part that is plain numbers, by name."""
        return {name: getattr(self, name) for name in ('step', 'epoch', 'samples', 'best', 'sums')}

    def tested(self):
        """What best.pth.tar holds: the weights that are tested, with train.ema the averaged."""
        weights = self.ema.state_dict if self.ema else self.network.state_dict()
        return self.progress() | {'state_dict': weights, 'config': self.config}

    def to_dict(self):
        """What a checkpoint holds."""
        # Of this rank's GPU alone: asking the others would take memory on each of them.
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        return self.tested() | {
            'own_weights': self.network.state_dict() if self.ema else {},
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'random': {'cpu': torch.get_rng_state(), 'cuda': cuda},
        }

    def load(self, checkpoint, path):
        """Takes all but the weights from a checkpoint, read from `path`. Raises UserError."""
        saved = checkpoint.get('optimizer')
        untrained = isinstance(saved, dict) and saved.get('state') == {}  # before the first step
        learnt = {} if untrained else example_state(self.optimizer)
        random = {'cpu': torch.get_rng_state(), 'cuda': []}
        expected = self.progress() | {'optimizer': {'state': learnt}, 'random': random}
        scaler = checkpoint.get('scaler') and self.scaler.state_dict()  # none but in float16
        expected |= {'scaler': scaler} if scaler else {}
        problem = schema_error(checkpoint, expected)
        try:
            if not problem:
                torch.set_rng_state(checkpoint['random']['cpu'])
                if checkpoint['random']['cuda'] and torch.cuda.is_available():
                    torch.cuda.set_rng_state(checkpoint['random']['cuda'][0])
        except (RuntimeError, TypeError, AttributeError):
            problem = 'random'
        if problem:
            raise UserError(
                f'{path} holds no training state for this network ({problem}): it can be tested '
                f"('python test.py -c {path.parent.name}') but not continued; 'python train.py "
                f"-e NEW --init {path.parent}' starts a new run with its weights"
            )
        # Only what it has learnt comes from the file; its settings are this program's.
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict(own | {'state': {k: saved['state'][k] for k in learnt}})
        if scaler:
            self.scaler.load_state_dict(checkpoint['scaler'])
        if self.ema:
            # Without any in the file the average begins with the weights.
            for name, value in bare_names(checkpoint.get('state_dict', {})).items():
                self.ema.state_dict[name].copy_(value)
        for name in self.progress():
            setattr(self, name, checkpoint[name])

    def tested_weights(self):
        """Within it the network has the weights that are tested: the averaged ones, if any."""
        return self.ema.applied(self.network) if self.ema else contextlib.nullcontext()

    def advance(self, images, applied):
        """Counts a step of so many images; the average takes in its weights if it was applied."""
        self.step += 1
        self.samples += images
        if self.ema and applied:
            self.ema.update(self.network, self.step)

    def add_step(self, losses):
        """Adds a step's mean losses (L, S) to the epoch's sums."""
        self.sums['losses'] += losses
        self.sums['steps'] += 1
        self.sums['skipped_in_a_row'] = 0

    def skip_step(self):
        """Counts a step that was skipped; returns how many were, one after another."""
        self.sums['skipped'] += 1
        self.sums['skipped_in_a_row'] += 1
        return self.sums['skipped_in_a_row']

    def end_epoch(self):
        """Counts the epoch, and begins the sums of the next one."""
        self.epoch += 1
        losses = torch.zeros_like(self.sums['losses'])
        self.sums |= {'losses': losses, 'steps': 0, 'skipped': 0}  # a row of skips may go on

    def losses(self):
        """The epoch's mean losses so far by name, over images and stacks."""
        return self.named(self.sums['losses'] / max(self.sums['steps'], 1))

    def named(self, losses):
        """The means over the stacks of losses (L, S), by name."""
        names = self.config['train']['loss_weights']
        return dict(zip(names, losses.mean(1).tolist(), strict=True))

    def is_best(self, figures, valid_objective):
        """Whether an epoch is the best so far: by AP or, in a run without, by validation loss."""
        if figures:
            better = figures['AP'] >= self.best['AP']  # of equal ones, more training
            self.best['AP'] = max(self.best['AP'], figures['AP'])
        else:
            measured = self.config['train']['eval_epochs'] or self.best['AP'] >= 0
            better = not measured and valid_objective < self.best['valid']
        self.best['valid'] = min(self.best['valid'], valid_objective)
        return better


def schema_error(value, example, name=''):
    """The name of what in a nested value cannot take its place in `example`; '' if all can.

    Dicts need the example's keys, tensors its shape and type; whole numbers are 0 to 2 ** 53, and
    other numbers anything but NaN.
    """
    if isinstance(example, dict) and isinstance(value, dict):
        names = (
            schema_error(value.get(k), v, f'{name}.{k}'.strip('.')) for k, v in example.items()
        )
        return next(filter(None, names), '')
    if isinstance(example, torch.Tensor):
        fits = (
            isinstance(value, torch.Tensor)
            and (value.shape, value.dtype) == (example.shape, example.dtype)
            and is_plain(value)
        )
    elif type(example) is int:
        fits = type(value) is int and 0 <= value <= MOST
    elif type(example) is float:
        fits = type(value) in (int, float) and not math.isnan(value)
    else:
        fits = type(value) is type(example)
    return '' if fits else name
