"""Weights and training states on the disk: written whole or not at all, checked when read."""

import io
import json
import math
import os
import re
import zipfile

import torch

from utils import dist
from utils.config import MOST
from utils.errors import UserError

# What weights and states may be made of: no complex or quantized numbers, no fractions of 8 bits.
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# Layers of the network whose shape hangs on the number of output channels.
OUTPUT_LAYERS = ('outs.', 'merge_preds.')


def write_atomically(path, write):
    """Calls write(stream) on a file aside and renames it: `path` is old or new, never half.

    Raises OSError, as on a full disk, and then leaves nothing aside.
    """
    aside = path.with_name(path.name + '.part')
    try:
        with open(aside, 'wb') as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path, content):
    """Writes a JSON file, atomically."""
    text = json.dumps(content, indent=2) + '\n'
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_checkpoint(path):
    """The dict in a checkpoint file, on the CPU; nothing in it is ever executed.

    All ranks call it, and get what rank 0 reads. Raises UserError where the file is missing, broken
    or holds no network of finite numbers.
    """
    source = path
    try:
        if dist.world_size() > 1:
            source = io.BytesIO(dist.share_bytes(path.read_bytes() if dist.rank() == 0 else b''))
        check_sums(source)
        checkpoint = torch.load(source, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'there is no checkpoint {path}') from None
    # A file cut short or made by something else fails in as many ways as there are readers in it.
    except Exception:
        raise UserError(
            f'{path} is no checkpoint that can be read: it is broken, or holds more than tensors '
            'and plain values; take it from its source again'
        ) from None
    state_dict = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in state_dict.items()
    ):
        raise UserError(f'{path} holds no network: expected a dict with a state_dict of tensors')
    check_plain(state_dict, path)
    return checkpoint


def check_sums(source):
    """Raises BadZipFile where bytes of a zip file are not what was saved: torch does not look."""
    if not zipfile.is_zipfile(source):
        return  # the format before torch 1.6 has no check sums
    with zipfile.ZipFile(source) as archive:
        packed = any(entry.compress_type for entry in archive.infolist())  # torch never packs
        if packed or archive.testzip():
            raise zipfile.BadZipFile
    if isinstance(source, io.BytesIO):
        source.seek(0)


def check_plain(weights, path):
    """Raises UserError unless the weights are finite numbers, each of them in the file."""
    odd = [name for name, value in weights.items() if not is_plain(value)]
    if odd:
        raise UserError(f'{path} has weights that are not plain finite numbers: {first_of(odd)}')


def is_plain(value):
    """Whether a tensor holds a finite real number for every place that its shape claims."""
    return (
        value.layout is torch.strided
        and value.device.type == 'cpu'
        and value.dtype in NUMBERS
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        and bool(value.isfinite().all())
    )


def schema_error(value, example, name=''):
    """The name of what in a nested value cannot stand where it does in `example`; '' if all can.

    Dicts need the example's keys, tensors its shape and type; whole numbers are 0 to 2 ** 53, and
    other numbers anything but NaN.
    """
    if isinstance(example, dict) and isinstance(value, dict):
        names = (
            schema_error(value.get(k), v, f'{name}.{k}'.strip('.')) for k, v in example.items()
        )
        return next(filter(None, names), '')
    if isinstance(example, torch.Tensor):
        good = isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (
            (example.shape, example.dtype)
        )
        good = good and is_plain(value)
    elif type(example) is int:
        good = type(value) is int and 0 <= value <= MOST
    elif type(example) is float:
        good = type(value) in (int, float) and not math.isnan(value)
    else:
        good = type(value) is type(example)
    return '' if good else name or 'content'


def bare_names(state_dict):
    """The weights without the prefixes of the wrappers they were saved from."""
    return {re.sub(r'^(model\.|module\.)+', '', name): value for name, value in state_dict.items()}


def misfits(wanted, found):
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
    return '; '.join(
        f'{len(names)} {what} ({first_of(names)})' for what, names in differences.items() if names
    )


def first_of(names, count=3):
    """The first of many names: 'a, b, c, ...'."""
    return ', '.join([*names[:count], *['...'][: len(names) > count]])


def load_network(network, state_dict, path):
    """Copies weights into the network, name by name; UserError with the first that do not fit.

    Names may carry the prefixes of the wrappers they were saved from, as published weights do.
    """
    state_dict = bare_names(state_dict)
    problem = misfits(network.state_dict(), state_dict)
    if problem:
        raise UserError(
            f'{path} does not fit the network of this config: {problem}; '
            "set the config's model.* to the sizes it was trained with"
        )
    network.load_state_dict(state_dict)


def load_first_weights(network, state_dict, path):
    """Copies weights into the network of a new run, whose joints may be other ones.

    Like load_network, but layers that differ in the number of output channels keep the network's
    own, new weights. Returns the names of these layers.
    """
    state_dict, wanted = bare_names(state_dict), network.state_dict()
    anew = {
        layer_of(name)
        for name, value in wanted.items()
        if name.startswith(OUTPUT_LAYERS)
        and name in state_dict
        and state_dict[name].shape != value.shape
    }
    own = {name: value for name, value in wanted.items() if layer_of(name) in anew}
    load_network(network, state_dict | own, path)
    return sorted(anew)


def layer_of(name):
    """The layer that a weight belongs to: 'outs.0.conv' of 'outs.0.conv.bias'."""
    return name.rpartition('.')[0]
