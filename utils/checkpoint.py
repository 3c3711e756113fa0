"""Weights and training states on the disk: written whole or not at all, checked when read."""

import importlib
import json
import os
import re
import zipfile
from pathlib import Path

import torch

from utils import dist
from utils.errors import UserError
from utils.weights import PLACES, find_weights

# What weights and states may be made of: no complex or quantized numbers, no fractions of 8 bits.
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


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
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if getattr(error, 'strerror', None) and error.filename in (None, str(aside)):
            error.filename = str(path)
        raise


def write_json(path, content, indent=2):
    """Writes a JSON file, atomically."""
    text = json.dumps(content, indent=indent) + '\n'
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_checkpoint(path):
    """The dict in a checkpoint file, on the CPU; nothing in it is ever executed.

    All ranks call it, and get what rank 0 reads. Raises UserError where the file is missing, broken
    or holds no network of finite numbers.
    """
    path = Path(path)
    try:
        with dist.shared_file(path) as source:
            if path.suffix == '.safetensors':
                checkpoint = importlib.import_module('safetensors.torch').load_file(source)
            else:
                check_sums(source)
                checkpoint = torch.load(source, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f'there is no checkpoint {path}') from None
    # A file cut short or made by something else fails in as many ways as there are readers in it.
    except Exception as error:
        raise UserError(f'{path} cannot be read as a checkpoint: {describe(error)}') from None
    state_dict = find_weights(checkpoint)
    if not state_dict:
        raise UserError(
            f'{path} holds no network: expected tensors by name, or a dict with them as one of '
            f'{", ".join(PLACES)}'
        )
    check_plain(state_dict, path)
    return checkpoint | {'state_dict': state_dict}


def describe(error):
    """What keeps a file from being read as a checkpoint, and what to do about it."""
    if isinstance(error, ImportError):
        return "its format needs another package: 'pip install safetensors'"
    if code := re.search(r'GLOBAL ([\w.]+)|TorchScript', str(error)):
        return (
            f'it holds code to be run ({code[1] or code[0]}); where it was made, save the '
            'state_dict of the network'
        )
    return 'it is broken, or no checkpoint; get it again from its source'


def check_sums(source):
    """Raises BadZipFile where bytes of a zip file are not what was saved: torch does not look."""
    if zipfile.is_zipfile(source):  # the format before torch 1.6 has no check sums
        with zipfile.ZipFile(source) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise ValueError('TorchScript')
            packed = any(entry.compress_type for entry in archive.infolist())  # torch never packs
            if packed or archive.testzip():
                raise zipfile.BadZipFile


def check_plain(weights, path):
    """Raises UserError unless the weights are finite numbers, each of them in the file."""
    for name, value in weights.items():
        if not is_plain(value):
            raise UserError(f'{path} has a weight that is not of plain finite numbers: {name}')


def is_plain(value):
    """Whether a tensor holds a finite real number for every place that its shape claims."""
    return (
        value.layout is torch.strided
        and value.device.type == 'cpu'
        and value.dtype in NUMBERS
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        # A NaN is both the least and the greatest. No copy is made, which could be a large one.
        and (value.numel() == 0 or bool(value.amin().isfinite() and value.amax().isfinite()))
    )
