"""The config of a run: its types, its limits, and what --set changes of it."""

import ast
import contextlib
import copy
import difflib
import importlib
import math
import re
from pathlib import Path

from utils import dist
from utils.errors import UserError

MOST = 2**53  # steps, images and so on: what a float can count
# The least and the most that numbers may be, of a key or of a whole section. Upper ends keep a
# damaged config.json from asking for all of a machine's memory.
LIMITS = {
    'model.nstack': (1, 64), 'model.inp_dim': (1, 2048), 'model.oup_dim': (1, 8192),
    'model.increase': (0, 1024), 'model.stem': (1, 1024),
    'train': (0, MOST), 'train.epochs': (1, MOST), 'train.train_iters': (1, MOST),
    'train.log_iters': (1, MOST), 'train.valid_iters': (1, 100_000), 'train.sigma': (0, 1),
    'train.batchsize': (1, 10_000), 'train.accumulate': (1, 10_000), 'train.ema': (0, 0.999999),
    'train.max_num_people': (1, 10_000), 'train.num_workers': (-1, 1000),
    'train.input_res': (64, 8192), 'augmentation': (0, 360), 'augmentation.scale': (0.01, 100),
    'augmentation.aim': (0, 1), 'augmentation.mirror': (0, 1), 'test.scales': (0.01, 16),
    'test.batchsize': (1, 10_000), 'test.num_workers': (-1, 1000), 'test.vis': (0, MOST),
    'test.max_num_people': (1, 10_000),
}  # fmt: skip
CHOICES = dict.fromkeys(('train.precision', 'test.precision'), ('fp32', 'bf16', 'fp16', 'auto'))
CHOICES |= dict.fromkeys(('train.device', 'test.device'), ('auto', 'cpu', 'cuda', 'mps'))
CHOICES |= {'train.on_nonfinite': ('stop', 'skip'), 'test.tie_break': ('solver', 'value')}
CHOICES |= {'train.optimizer': ('adam', 'muon')}
# The code that keys name: a config from elsewhere runs no other.
CODE = {'network': r'(models(?:\.\w+)+)\.(\w+)', 'data_provider': r'(data(?:\.\w+)+)()'}
PAST = {'train.joint_weight'}  # keys that configs of earlier versions have
# What a run did before there was a key for it, whatever its task says today.
BEFORE = {'train.optimizer': 'adam', 'train.subpixel': False, 'test.subpixel': False}
# Lists of any length, with an example; the others keep their number of items.
LISTS = {
    'data.joints': ['nose', 'left_eye'], 'data.skeleton': [[0, 1], [0, 2]],
    'data.flip_pairs': [[1, 2], [3, 4]], 'data.sigmas': [0.026, 0.025], 'data.joint_order': [0, 1],
}  # fmt: skip


def load_task(name):
    """The module task.<name>; UserError that lists the tasks if there is none."""
    files = Path(__file__).parent.parent.glob('task/*.py')
    known = sorted(path.stem for path in files if '__config__ =' in path.read_text('utf-8'))
    if name not in known:
        raise UserError(f'no task {name!r}: choose one of {", ".join(known)}')
    return importlib.import_module(f'task.{name}')


def flatten(config, prefix=''):
    """{'train.batchsize': 32, ...} of a nested config."""
    flat = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f'{prefix}{key}.') if inner else {prefix + key: value}
    return flat


def apply_settings(config, settings):
    """A copy of the config with every 'a.b=value' of `settings` put in. Raises UserError."""
    config = copy.deepcopy(config)
    for setting in settings:
        key, equals, value = setting.partition('=')
        if not equals:
            raise UserError(f'--set {setting}: expected key=value, for example train.batchsize=8')
        if type(flatten(config).get(key)) is not str:
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(value, value))
        try:
            put(config, key, value)
        except UserError as error:
            raise UserError(f'--set {error}') from None
    return config


def complete(saved):
    """A saved config with what it lacks taken from its task's: runs outlive new keys.

    Raises UserError that names a key; KeyError or TypeError where it is not the config of a run.
    """
    run = saved['run']
    if type(run.get('commands', [])) is not list:
        raise TypeError('run.commands is no list')
    values = flatten({key: value for key, value in saved.items() if key != 'run'})
    values = {key: value for key, value in values.items() if key not in PAST}
    return fill(load_task(run['task']).__config__, values) | {'run': run}


def fill(config, values):
    """A task's config with the values of a saved one, see `flatten`, put in. Raises UserError.

    A key that they lack keeps the task's value, or has the one of `BEFORE`.
    """
    config = copy.deepcopy(config)
    for key, value in (BEFORE | values).items():
        put(config, key, value)
    return config


def put(config, key, value):
    """Replaces an entry of a config, in place, by a value of the same type. Raises UserError."""
    flat = flatten({name: section for name, section in config.items() if name != 'run'})
    if key not in flat:
        near = difflib.get_close_matches(key, flat, n=1, cutoff=0)[0]
        raise UserError(f'{key}: no such key; the nearest is {near}')
    example = LISTS.get(key, flat[key])
    any_length = key in LISTS or (key.startswith('test.scales.') and value != [])
    try:
        value = conform(value, example, any_length)
    except (ValueError, OverflowError):
        raise UserError(f'{key}: expected a value like {example!r}, found {value!r:.200}') from None
    *path, name = key.split('.')
    for part in path:
        config = config[part]
    config[name] = value


def conform(value, example, any_length=False):
    """The value, if it is of the example's type down to the items of lists; ValueError otherwise.

    A whole number passes for a fraction; one that is not finite does not. All items of a list are
    like the example's first, and as many, unless it may have any_length.
    """
    if type(example) is float and type(value) is int:
        return float(value)
    if type(value) is not type(example) or (type(value) is float and not math.isfinite(value)):
        raise ValueError
    # Any text may be a path, in whatever encoding.
    if type(value) is str and b'\0' in value.encode('utf-8', 'surrogateescape'):
        raise ValueError
    if type(value) is not list:
        return value
    if len(value) != len(example) and not any_length:
        raise ValueError
    return [conform(item, example[0]) for item in value]


def check_config(config, num_parts=None):
    """Raises UserError where values of a config are out of range, or do not fit together.

    num_parts: the number of joints, or None where it is not yet known.
    """
    for key, value in flatten(config).items():
        low, high = LIMITS.get(key) or LIMITS.get(key.rpartition('.')[0]) or (-MOST, MOST)
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float) and not low <= number <= high:
                raise UserError(f'{key} is {value!r:.200}: expected {low:,} to {high:,}')
        if value not in CHOICES.get(key, [value]):
            raise UserError(f'{key} is {value!r}: expected one of {", ".join(CHOICES[key])}')
    input_res, output_res = config['train']['input_res'], config['train']['output_res']
    if output_res * 4 != input_res or input_res % 64:
        raise UserError(
            f'train.output_res is {output_res} and train.input_res {input_res}: the network '
            'needs an input that is a multiple of 64, and an output of input_res / 4'
        )
    if min(config['model']['std']) <= 0:
        raise UserError(f'model.std is {config["model"]["std"]}: expected numbers above 0')
    for name, values in config['augmentation'].items():
        if isinstance(values, list) and values[0] > values[1]:
            raise UserError(f'augmentation.{name} is {values}: expected the lower end first')
    for key, pattern in CODE.items():
        found = None
        if place := re.fullmatch(pattern, config[key]):
            with contextlib.suppress(ImportError):
                found = getattr(importlib.import_module(place[1]), place[2] or 'init', None)
        if not callable(found):
            example = load_task('pose').__config__[key]
            raise UserError(f'{key} is {config[key]!r}: there is none; expected one like {example}')
    channels = config['model']['oup_dim']
    if num_parts and channels < 2 * num_parts:
        raise UserError(
            f'model.oup_dim is {channels}: expected at least {2 * num_parts}, a heatmap and a tag '
            f'for each of {num_parts} joints'
        )


def check_shares(settings):
    """Raises UserError where a batch cannot be split evenly."""
    images, ranks, passes = settings['batchsize'], dist.world_size(), settings['accumulate']
    if images % (ranks * passes):
        raise UserError(
            f'train.batchsize is {images}: expected a multiple of {ranks * passes}, for {ranks} '
            f'ranks x {passes} backward passes (train.accumulate)'
        )
