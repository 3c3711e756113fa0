"""Weights by name: what keeps them from being those of a network, and their way into it."""

import re

import torch

from utils.errors import UserError

# Layers of the network whose shape depends on the number of output channels.
OUTPUT_LAYERS = ('outs.', 'merge_preds.')


# Where other programs keep the weights in what they save, and what wrappers put before a name.
PLACES = ('state_dict', 'model_state_dict', 'model', 'weights', 'ema', 'module')
WRAPPERS = r'((model|module|_orig_mod|backbone|network)\.)+'


def find_weights(content):
    """The tensors by name in what a file holds: all of it, or a dict within it; {} if none."""
    if not isinstance(content, dict):
        return {}
    if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        return content
    return next(filter(None, (find_weights(content.get(place)) for place in PLACES)), {})


def bare_names(state_dict):
    """The weights without the prefixes of the wrappers they were saved from."""
    return {re.sub(f'^{WRAPPERS}', '', name): value for name, value in state_dict.items()}


def describe_misfits(wanted, found):
    """What keeps the weights `found` from being those of a network, in words; '' if they are.

    wanted, found: tensors by name; of `wanted` only the shapes count.
    """
    differences = {
        'missing': [k for k in wanted if k not in found],
        'unexpected': [k for k in found if k not in wanted],
        'of another shape': [
            f'{k} {tuple(found[k].shape)}, not {tuple(v.shape)}'
            for k, v in wanted.items()
            if k in found and found[k].shape != v.shape
        ],
    }
    return '; '.join(f'{len(v)} {k} ({shorten(v)})' for k, v in differences.items() if v)


def shorten(names, count=3):
    """The first of many names: 'a, b, c, ...'."""
    return ', '.join([*names[:count], *['...'][: len(names) > count]])


def load_network(network, state_dict, path, any_outputs=False):
    """Gives a network weights, name by name; UserError with the first that do not fit.

    Those of the same type and layout become the network's without being copied.

    Names may have the prefixes of the wrappers they were saved from, as published weights do.
    any_outputs: whether layers that differ in the number of output channels keep the network's own
    weights, for a new run may have other joints, and a narrower network's weights become part of a
    wider one's. Returns the names of the layers that are new.
    """
    wanted, found, own = network.state_dict(), bare_names(state_dict), set()
    if any_outputs:
        own = {
            name.rpartition('.')[0]  # 'outs.0.conv' of 'outs.0.conv.bias'
            for name, value in wanted.items()
            if name.startswith(OUTPUT_LAYERS)
            and name in found
            and output_channels(name, found[name]) != output_channels(name, value)
        }
        found |= {name: value for name, value in wanted.items() if name.rpartition('.')[0] in own}
        found = widen(found, wanted)
    if problem := describe_misfits(wanted, found):
        raise UserError(
            f'{path} does not fit the network of this config: {problem}; '
            "set the config's model.* to the sizes it was trained with"
        )
    # A network is laid out with its channels last, and computes in float32.
    alike = {name: found[name].to(value) for name, value in wanted.items()}
    network.load_state_dict(alike, assign=True)
    network.to(memory_format=torch.channels_last)
    return sorted(own)


def widen(weights, wanted):
    """The weights of a narrower network within those, `wanted`, of a wider one of the same layers.

    The old features see nothing of the new ones, so that the network answers as before.
    """
    wide = dict(weights)
    for name, value in wanted.items():
        old = weights.get(name)
        if old is None or old.shape == value.shape or old.ndim != value.ndim:
            continue
        if all(a <= b for a, b in zip(old.shape, value.shape, strict=True)):
            wide[name] = value.clone()
            wide[name][: len(old)] = 0
            wide[name][tuple(slice(side) for side in old.shape)] = old
    return wide


def output_channels(name, value):
    """How many of the network's output channels a weight of OUTPUT_LAYERS deals with."""
    dim = 0 if name.startswith('outs.') else 1
    return value.shape[dim] if dim < value.ndim else None
