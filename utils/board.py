"""What TensorBoard shows of a run: losses by stack, learning rate, speed, AP, predictions."""


class Board:
    """Writes the events of a run into a folder; after an error, as on a full disk, it begins anew.

    loss_weights: by name, in the order of the losses (L, S) given below. step: up to which the run
    continues; events from beyond it, of a run that was killed, are not shown.
    """

    def __init__(self, folder, loss_weights, step):
        self.folder, self.loss_weights, self.step = folder, loss_weights, step
        self.writer = None
        self.shown = 0, 0  # steps and their losses (L, S), of this epoch, that have been shown

    def write(self, step, scalars, pictures):
        """Writes numbers and pictures (H, W, 3) uint8 RGB, by name. Raises OSError."""
        from torch.utils.tensorboard import SummaryWriter  # looks at the disk when imported

        try:
            if self.writer is None:
                self.writer = SummaryWriter(self.folder, purge_step=self.step or None)
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            for name, picture in pictures.items():
                self.writer.add_image(name, picture, step, dataformats='HWC')
            self.writer.flush()
        except OSError:
            self.writer, self.step = None, 0
            raise

    def scalars(self, losses, split):
        """The scalars of losses (L, S): raw and weighted, of every stack."""
        scalars = {}
        for (name, weight), row in zip(self.loss_weights.items(), losses.tolist(), strict=True):
            for number, value in enumerate(row, 1):
                scalars[f'{name}/{split}, stack {number}'] = value
                scalars[f'{name}, weighted/{split}, stack {number}'] = weight * value
        return scalars

    def progress(self, step, sums, rate):
        """The losses since the last call, from their sums over the epoch, and the learning rate."""
        steps, losses = self.shown
        if sums['steps'] > steps:  # else all since then were skipped
            means = (sums['losses'] - losses) / (sums['steps'] - steps)
            self.shown = sums['steps'], sums['losses'].clone()
            self.write(step, self.scalars(means, 'train') | {'training/learning rate': rate}, {})

    def epoch(self, metrics, valid_losses, pictures):
        """An epoch's end: its metrics by name, validation losses (L, S), and pictures by name."""
        self.shown = 0, 0
        scalars = self.scalars(valid_losses, 'validation') | {
            'training/images per second': metrics['images_per_second'],
            'training/share of time waiting for data': metrics['data_wait'],
            'training/skipped steps': metrics['skipped'],
            'objective/train': metrics['objective'],
            'objective/validation': metrics['valid_objective'],
        }
        scalars |= {f'validation/{k}': v for k, v in metrics.items() if k[:2] in ('AP', 'AR')}
        self.write(metrics['step'], scalars, pictures)
