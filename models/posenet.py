"""The network: a stem that divides the photo's side by 4, then stacked hourglasses."""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.layers import Conv, Hourglass


class Merge(nn.Module):
    """Brings a stack's features or predictions back to the width of the next stack's input."""

    def __init__(self, inp_dim, out_dim):
        super().__init__()
        self.conv = Conv(inp_dim, out_dim, 1, relu=False)

    def forward(self, x):
        return self.conv(x)


class PoseNet(nn.Module):
    """Stacked hourglasses that predict heatmaps and tags after every stack (paper, section 3.2).

    nstack: hourglasses S. inp_dim: features at the output's size. oup_dim: output channels C, of
    which the first K are heatmaps and the next K are tags; the rest is unsupervised but feeds the
    next stack. bn: BatchNorm behind most convolutions. increase: features added at each halving.
    stem: widths of the first three convolutions. mean, std: of the photo's channels, for weights
    trained on normalised photos. The names of the state dict are the original's.

    With `checkpoint_stacks` set, training keeps only what passes between the stem and the stacks,
    and computes the rest once more in the backward pass: less memory, the same gradients.
    """

    def __init__(
        self, nstack=4, inp_dim=256, oup_dim=68, bn=False, increase=128, stem=(64, 128, 128),
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    ):  # fmt: skip
        super().__init__()
        self.checkpoint_stacks = False
        self.normalises = any(mean) or any(value != 1 for value in std)
        if self.normalises:  # part of the config, not of the weights: those have no such names
            self.register_buffer('mean', torch.tensor(mean), persistent=False)
            self.register_buffer('std', torch.tensor(std), persistent=False)
        self.pre = nn.Sequential(
            Conv(3, stem[0], 7, stride=2, bn=bn),
            Conv(stem[0], stem[1], bn=bn),
            nn.MaxPool2d(2, 2),
            Conv(stem[1], stem[2], bn=bn),
            Conv(stem[2], inp_dim, bn=bn),
        )
        self.features = nn.ModuleList(
            nn.Sequential(
                Hourglass(4, inp_dim, bn, increase), Conv(inp_dim, inp_dim), Conv(inp_dim, inp_dim)
            )
            for _ in range(nstack)
        )
        self.outs = nn.ModuleList(Conv(inp_dim, oup_dim, 1, relu=False) for _ in range(nstack))
        self.merge_features = nn.ModuleList(Merge(inp_dim, inp_dim) for _ in range(nstack - 1))
        self.merge_preds = nn.ModuleList(Merge(oup_dim, inp_dim) for _ in range(nstack - 1))

    def forward(self, imgs):
        """imgs (B, H, W, 3) RGB in [0, 1], H and W multiples of 64 -> (B, S, C, H / 4, W / 4)."""
        if self.normalises:
            imgs = (imgs - self.mean) / self.std
        # The photo's own layout is channels_last already: a view, no copy.
        x = self.step(self.pre, imgs.permute(0, 3, 1, 2))
        preds = []
        for i in range(len(self.features)):
            pred, x = self.step(self.stack, x, i)
            preds.append(pred)
        return torch.stack(preds, 1)

    def stack(self, x, i):
        """Stack i: its input (B, F, h, w) -> predictions (B, C, h, w), the next stack's input."""
        feature = self.features[i](x)
        pred = self.outs[i](feature)
        if i < len(self.merge_preds):
            x = x + self.merge_preds[i](pred) + self.merge_features[i](feature)
        return pred, x

    def step(self, function, *args):
        """function(*args), whose inner activations are kept or computed again in backward."""
        if not (self.checkpoint_stacks and self.training and torch.is_grad_enabled()):
            return function(*args)
        return checkpoint(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in it is random
            context_fn=lambda: (contextlib.nullcontext(), self.counting_once()),
        )

    @contextlib.contextmanager
    def counting_once(self):
        """Within it BatchNorm normalises as in training, but does not count the images again."""
        kinds = nn.BatchNorm2d, nn.SyncBatchNorm
        norms = [module for module in self.modules() if isinstance(module, kinds)]
        kept = [(norm, dict(norm.named_buffers())) for norm in norms]
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())  # which the second pass may count into
        try:
            yield
        finally:
            for norm, buffers in kept:
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer)
