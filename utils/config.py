"""The config of a run: its types, its limits, and what --set changes of it."""

import ast
import copy
import difflib
import importlib
import importlib.util
import math
import os
import re
from pathlib import Path

from utils.errors import UserError

MOST = 2**53  # steps, images and so on: what a float can count
# The least and the most that numbers of the config, or of a whole section of it, may be. Upper ends
# are beyond any use; they keep a damaged config.json from asking for all of a machine's memory.
LIMITS = {
    'model.nstack': (1, 64),
    'model.inp_dim': (1, 2048),
    'model.oup_dim': (1, 8192),
    'model.increase': (0, 1024),
    'model.stem': (1, 1024),
    'train.seed': (0, MOST),
    'train.batchsize': (1, 10_000),
    'train.accumulate': (1, 10_000),
    'train.valid_iters': (1, 100_000),
    'train.input_res': (64, 8192),
    'train.sigma': (0, 1),
    'train.max_num_people': (1, 10_000),
    'train.num_workers': (-1, 1000),
    **dict.fromkeys(('train.epochs', 'train.train_iters', 'train.log_iters'), (1, MOST)),
    **dict.fromkeys(('train.eval_epochs', 'train.warmup_iters', 'train.decay_iters'), (0, MOST)),
    **dict.fromkeys(('train.learning_rate', 'train.decay_rate', 'train.clip_norm'), (0, 1e6)),
    'train.save_minutes': (0, 1e6),
    'augmentation': (0, 360),
    'augmentation.scale': (0.01, 100),
    'augmentation.mirror': (0, 1),
    'test.batchsize': (1, 10_000),
    'test.scales': (0.01, 16),
    'test.max_num_people': (1, 10_000),
    'test.num_workers': (-1, 1000),
    'test.vis': (0, MOST),
}
# Keys that name code, and the package that it lies in: a config from elsewhere runs no other.
CODE = {'network': 'models', 'data_provider': 'data'}
# Lists of any length, with an example; the others keep their number of items.
LISTS = {
    'data.joints': ['nose', 'left_eye'],
    'data.skeleton': [[0, 1], [0, 2]],
    'data.flip_pairs': [[1, 2], [3, 4]],
    'data.sigmas': [0.026, 0.025],
    'data.joint_order': [0, 1],
}


def load_task(name):
    """The module task.<name>; UserError that lists the tasks if there is none."""
    folder = Path(importlib.util.find_spec('task').submodule_search_locations[0])
    known = sorted(p.stem for p in folder.glob('*.py') if '__config__ =' in p.read_text())
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


def parse_value(key, text, default):
    """The value that `text` stands for, of the type that the key has; UserError otherwise."""
    kind = type(default)
    if kind is str:
        return text
    try:
        value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    try:
        return typed(key, value, default)
    except ValueError as error:
        raise UserError(f'--set {key}={text}: {error}') from None


def typed(key, value, default):
    """The value, if it is of the type that this key of a config has; ValueError that tells it."""
    example = LISTS.get(key, default)
    any_length = key in LISTS or (key.startswith('test.scales.') and value != [])
    try:
        return conform(value, example, any_length)
    except (ValueError, OverflowError):
        kind = type(default).__name__
        raise ValueError(f'expected a {kind} such as {example!r}, found {value!r:.200}') from None


def conform(value, example, any_length=False):
    """The value, if it is of the example's type down to the items of lists; ValueError otherwise.

    A whole number passes for a fraction; one that is not finite does not. All items of a list are
    like the example's first, and as many, unless it may have any_length.
    """
    if type(example) is float and type(value) is int:
        return float(value)
    if type(value) is not type(example) or (type(value) is float and not math.isfinite(value)):
        raise ValueError
    if type(value) is str and '\0' in os.fsdecode(os.fsencode(value)):  # else it may be a path
        raise ValueError
    if type(value) is not list:
        return value
    if len(value) != len(example) and not any_length:
        raise ValueError
    return [conform(item, example[0]) for item in value]


def apply_settings(config, settings):
    """A copy of the config with every 'a.b=value' of `settings` put in. Raises UserError."""
    config = copy.deepcopy(config)
    flat = flatten({key: value for key, value in config.items() if key != 'run'})
    for setting in settings:
        key, equals, text = setting.partition('=')
        if not equals:
            raise UserError(f'--set {setting}: expected key=value, for example train.batchsize=8')
        if key not in flat:
            near = difflib.get_close_matches(key, flat, n=1, cutoff=0)
            raise UserError(f'--set {key}: no such key; the nearest is {near[0]}')
        *path, last = key.split('.')
        section = config
        for name in path:
            section = section[name]
        section[last] = parse_value(key, text, flat[key])
    return config


def merge(defaults, config):
    """The config with what it lacks taken from `defaults`: runs outlive new keys of their task."""
    merged = copy.deepcopy(defaults)
    for key, value in config.items():
        inner = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if inner else value
    return merged


def complete(saved):
    """A saved config with what it lacks taken from its task's. Raises UserError, naming the key.

    Every value is of the type that the task's has. KeyError and TypeError: it is of no run.
    """
    run = saved['run']
    if type(run['task']) is not str or type(run.get('commands', [])) is not list:
        raise TypeError
    defaults = load_task(run['task']).__config__
    config = merge(defaults, {key: value for key, value in saved.items() if key != 'run'})
    known, flat = flatten(defaults), flatten(config)
    for key in flat | known:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise UserError(f'no such key: {key}; the nearest is {near}')
        try:
            typed(key, flat.get(key), known[key])
        except ValueError as error:
            raise UserError(f'{key}: {error}') from None
    return config | {'run': run}


def check_config(config, num_parts=None):
    """Raises UserError where values of a config do not fit together.

    num_parts: how many joints there are, or None where the annotations have not told it yet.
    """
    settings, channels = config['train'], config['model']['oup_dim']
    input_res, output_res = settings['input_res'], settings['output_res']
    if output_res * 4 != input_res or input_res % 64:
        raise UserError(
            f'train.output_res is {output_res} and train.input_res {input_res}: the network '
            f'needs an input that is a multiple of 64, and an output of input_res / 4'
        )
    for key, value in flatten(config).items():
        limits = LIMITS.get(key) or LIMITS.get(key.rpartition('.')[0])
        if limits is None:
            continue
        low, high = limits
        for number in value if isinstance(value, list) else [value]:
            if not low <= number <= high:
                raise UserError(f'{key} is {value!r:.200}: expected {low:,} to {high:,}')
    if min(config['model']['std']) <= 0:
        raise UserError(f'model.std is {config["model"]["std"]}: expected numbers above 0')
    for name, values in config['augmentation'].items():
        if isinstance(values, list) and values[0] > values[1]:
            raise UserError(f'augmentation.{name} is {values}: expected the lower end first')
    for key in CODE:
        check_code(key, config[key])
    if config['test']['tie_break'] not in ('solver', 'value'):
        raise UserError(
            f"test.tie_break is {config['test']['tie_break']!r}: expected 'solver' or 'value'"
        )
    for section in ('train', 'test'):
        if config[section]['precision'] not in ('fp32', 'bf16', 'auto'):
            raise UserError(
                f"{section}.precision is {config[section]['precision']!r}: expected 'fp32', "
                "'bf16' or 'auto'"
            )
    if num_parts and channels < 2 * num_parts:
        raise UserError(
            f'model.oup_dim is {channels}: expected at least {2 * num_parts}, a heatmap and a tag '
            f'for each of {num_parts} joints'
        )


def check_code(key, name):
    """Raises UserError unless config[key] names a network in models/, a data provider in data/."""
    module, _, last = name.rpartition('.') if key == 'network' else (name, '', 'init')
    if not re.fullmatch(rf'{CODE[key]}(\.\w+)+', module):
        raise UserError(f'{key} is {name!r}: expected one that lies in {CODE[key]}/')
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise UserError(f'{key} is {name!r}: there is no module {module!r}') from None
    if not callable(getattr(found, last, None)):
        raise UserError(f'{key} is {name!r}: {module} has no {last or "name"}')
