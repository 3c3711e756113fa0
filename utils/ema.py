"""The moving average of a network's weights, which is tested and published in their place."""

import contextlib

import torch


class Ema:
    """An exponential moving average of all floating point entries of a network's state dict.

    BatchNorm's running statistics are averaged with the weights: those of the last few batches
    would be of other weights than the averaged ones. Counters are copied.
    """

    def __init__(self, network, decay):
        self.decay = decay
        self.state_dict = {name: value.clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network, step):
        """Takes in the weights after step number `step`, counted from 1.

        Early on the average forgets faster, since the first weights are worth little.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state_dict[name].lerp_(value, 1 - decay)
            else:
                self.state_dict[name].copy_(value)

    @contextlib.contextmanager
    def applied(self, network):
        """Within it the network has the averaged weights, and afterwards its own again."""
        own = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.state_dict)
        try:
            yield
        finally:
            network.load_state_dict(own)
