"""The optimizers: PyTorch's Adam, and Muon, which it has for matrices alone."""

import torch

MOMENTUM = 0.95
# Of the odd polynomial that, iterated, takes singular values from 0.02 to 1 to between 0.7 and 1.2.
# Five iterations would do so from 0.002 on, for more time: AP of the quickstart is the same.
QUINTIC, ITERATIONS = (3.4445, -4.775, 2.0315), 3
RMS = 0.2  # of a kernel's step at rate 1; Adam's is about as large, so that one rate does for both


class Muon(torch.optim.Adam):
    """Adam, but kernels of more than one pixel follow their momentum made orthogonal.

    As a matrix (output channels, all else) a gradient has few directions that outweigh the others;
    here all count alike (Jordan et al., 2024; the size of a step as in Liu et al., 2025). Where
    Adam keeps two means of a kernel, this keeps its momentum alone.
    """

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        kernels = {}
        for param in group['params']:
            if is_kernel(param) and param.grad is not None:
                kernels.setdefault(param.shape, []).append(param)
        for alike in kernels.values():
            grads = [param.grad for param in alike]
            for param in alike:
                if not self.state[param]:  # Adam wants a step of all when its state is loaded
                    momentum = torch.zeros_like(param)
                    self.state[param] = {'step': torch.zeros(()), 'momentum': momentum}
            momenta = [self.state[param]['momentum'] for param in alike]
            torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(grads, momenta, MOMENTUM))  # Nesterov's
            steps = orthogonal(ahead.flatten(2)).view_as(ahead)
            for param, step in zip(alike, steps, strict=True):
                param.sub_(step, alpha=group['lr'])
                param.grad = None  # which Adam passes over
        super().step()


def is_kernel(param):
    """Whether weights are those of a convolution that looks at more than one pixel."""
    return param.ndim == 4 and param.shape[2] > 1


def orthogonal(matrices):
    """Matrices (N, rows, columns) with all singular values near 1, times RMS * sqrt(longer side).

    Newton and Schulz's iteration; singular values below 0.02 of the Frobenius norm stay small.
    """
    rows, columns = matrices.shape[1:]
    x = matrices.mT if rows > columns else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        squared = x @ x.mT
        x = a * x + (b * squared + c * squared @ squared) @ x
    x = x.mT if rows > columns else x
    return x * (RMS * max(rows, columns) ** 0.5)


def make_optimizer(model, settings):
    """The optimizer of a model's weights; settings: the config's 'train'."""
    kind = {'adam': torch.optim.Adam, 'muon': Muon}[settings['optimizer']]
    return kind(model.parameters(), fused=True)


def example_state(optimizer):
    """What the optimizer keeps of its parameters after a step, by their numbers."""
    return {
        number: {'step': torch.zeros(()), 'momentum': param}
        if isinstance(optimizer, Muon) and is_kernel(param)
        else {'step': torch.zeros(()), 'exp_avg': param, 'exp_avg_sq': param}
        for number, param in enumerate(optimizer.param_groups[0]['params'])
    }
