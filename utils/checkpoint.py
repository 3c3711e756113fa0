"""Weights and training states on the disk: written whole or not at all, checked when read."""

import io
import json
import os
import re
import zipfile

import torch

from utils import dist
from utils.errors import UserError

# What weights and states may be made of: no complex or quantized numbers, no fractions of 8 bits.
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
# Layers of the network whose shape depends on the number of output channels.
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
            f'{path} cannot be read as a checkpoint: it is broken, or holds more than tensors and '
            'plain values; get it again from its source'
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
    if zipfile.is_zipfile(source):  # the format before torch 1.6 has no check sums
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
        raise UserError(f'{path} has weights that are not plain finite numbers: {shorten(odd)}')


def is_plain(value):
    """Whether a tensor holds a finite real number for every place that its shape claims."""
    return (
        value.layout is torch.strided
        and value.device.type == 'cpu'
        and value.dtype in NUMBERS
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        and bool(value.isfinite().all())
    )


def bare_names(state_dict):
    """The weights without the prefixes of the wrappers they were saved from."""
    return {re.sub(r'^(model\.|module\.)+', '', name): value for name, value in state_dict.items()}


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
    """Copies weights into a network, name by name; UserError with the first that do not fit.

    Names may have the prefixes of the wrappers they were saved from, as published weights do.
    any_outputs: whether layers that differ in the number of output channels keep the network's own
    weights, for a new run may have other joints. Returns the names of these layers.
    """
    wanted, found, own = network.state_dict(), bare_names(state_dict), set()
    if any_outputs:
        own = {
            name.rpartition('.')[0]  # 'outs.0.conv' of 'outs.0.conv.bias'
            for name, value in wanted.items()
            if name.startswith(OUTPUT_LAYERS) and name in found and found[name].shape != value.shape
        }
        found |= {name: value for name, value in wanted.items() if name.rpartition('.')[0] in own}
    if problem := describe_misfits(wanted, found):
        raise UserError(
            f'{path} does not fit the network of this config: {problem}; '
            "set the config's model.* to the sizes it was trained with"
        )
    network.load_state_dict(found)
    return sorted(own)
