"""One experiment is one folder, exp/<name>/: its config, log, figures and checkpoints."""

import ast
import copy
import difflib
import importlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from utils import dist

EXPERIMENTS = Path('exp')
REPOSITORY = Path(__file__).parent.parent
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
# What weights and states may be made of: no complex or quantized numbers, no fractions of 8 bits.
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
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
# Layers of the network whose shape hangs on the number of output channels.
OUTPUT_LAYERS = ('outs.', 'merge_preds.')


class UserError(Exception):
    """Something that the user can put right; the message says how."""


def exit_code(main, *errors):
    """Calls main() and leaves the other ranks; returns the exit code.

    UserError and `errors` become one line on stderr and the exit code 2.

    All ranks raise a UserError alike, and rank 0 speaks for them; other errors are of one machine.
    """
    try:
        code = main() or 0
    except (UserError, *errors) as error:
        if dist.rank() == 0 or not isinstance(error, UserError):
            print(f'error: {" ".join(str(error).splitlines())}', file=sys.stderr)
        return 2
    except (RuntimeError, EOFError, ConnectionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if dist.is_loss_of_rank(error):
            print(
                f'error: rank {dist.rank()} lost another rank, see there: {reason}', file=sys.stderr
            )
            return 1
        # The last two come of reading from a worker that has gone.
        if isinstance(error, RuntimeError) and 'DataLoader worker' not in reason:
            raise
        print(
            'error: a process that loads images died, most likely for want of memory '
            f'({reason}): lower num_workers or batchsize (--set), or give the machine more '
            '(shared) memory; what was saved is intact, and training goes on from it with -c',
            file=sys.stderr,
        )
        return 2
    finally:
        end_workers()
    dist.stop()
    return code


def end_workers():
    """Ends the processes that still load images: nobody waits for them any more."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else their death would be an error
    for process in multiprocessing.active_children():
        process.kill()


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


def unlike(value, example, name=''):
    """The name of what in a nested value cannot stand where it does in `example`; '' if all can.

    Dicts need the example's keys, tensors its shape and type; whole numbers are 0 to 2 ** 53, and
    other numbers anything but NaN.
    """
    if isinstance(example, dict) and isinstance(value, dict):
        names = (unlike(value.get(k), v, f'{name}.{k}'.strip('.')) for k, v in example.items())
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


def find_run(text):
    """The Run that 'NAME' or 'exp/NAME' means, as a shell completes it. Raises UserError."""
    return Run(text.removesuffix('/').removeprefix(f'{EXPERIMENTS}/'))


class Run:
    """The folder of one experiment. Nothing is written before `create`.

    The run is looked for in exp/ of the working folder, and with `anywhere` then in that of the
    repository.
    """

    def __init__(self, name, anywhere=False):
        if not re.fullmatch(r'\w[\w.-]*', name):
            raise UserError(
                f'experiment {name!r}: expected a plain name, found a path or odd characters; '
                'runs live in exp/<name>'
            )
        self.name = name
        self.homes = [EXPERIMENTS] + [REPOSITORY / EXPERIMENTS] * anywhere
        homes = [home for home in self.homes if (home / name).is_dir()]
        self.folder = (homes or self.homes)[0] / name
        self.config_path = self.folder / 'config.json'

    def checkpoint(self, which='checkpoint'):
        """The path of the latest checkpoint, or with 'best' of the best one."""
        return self.folder / f'{which}.pth.tar'

    def require(self, which='checkpoint'):
        """The path of a checkpoint that is there; UserError that lists the runs that have one."""
        path = self.checkpoint(which)
        if not path.is_file():
            have = sorted({p.parent.name for h in self.homes for p in h.glob(f'*/{path.name}')})
            others = f', or choose one of: {", ".join(have)}' if have else ''
            raise UserError(
                f"{self.folder} has no {path.name}: train it with 'python train.py -e "
                f"{self.name}'{others}"
            )
        return path

    def weights(self):
        """The path of the weights to start another run from: the best, or else the latest."""
        best = self.checkpoint('best')
        return best if best.is_file() else self.require()

    def config(self, task):
        """The run's own config, or where it has none (foreign weights) that of the task."""
        try:
            saved = json.loads(self.config_path.read_text())
        except FileNotFoundError:
            return copy.deepcopy(load_task(task).__config__) | {'run': {'task': task}}
        except (ValueError, RecursionError) as error:
            raise UserError(f'{self.config_path} is no JSON ({error})') from None
        try:
            return complete(saved)
        except (TypeError, KeyError, RecursionError):
            raise UserError(f'{self.config_path} is not the config of a run') from None
        except UserError as error:
            raise UserError(f'{self.config_path}: {error}') from None

    def is_of_launch(self, marks):
        """Whether it was last started by the torchrun with these marks, see dist.launch_marks."""
        try:
            last = json.loads(self.config_path.read_text())['run']['commands'][-1]
            return not set(marks).isdisjoint(last.get('launch', []))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False

    def create(self, config, launch=()):
        """Makes the folder and records the config with the command, versions and commit.

        launch: the marks of the torchrun that started this (dist.launch_marks). Raises UserError.
        """
        history = config['run'].setdefault('commands', [])
        history.append(
            {
                'command': shlex.join(['python', *sys.argv]),
                'python': sys.version.split()[0],
                'torch': str(torch.__version__),
                'commit': git_commit(),
                'ranks': dist.world_size(),
                'launch': list(launch),
            }
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.config_path, config)
        except OSError as error:
            raise UserError(
                f'cannot write {self.config_path} ({error.strerror}): runs need room in '
                f'{EXPERIMENTS.absolute()}'
            ) from None

    def log(self, text):
        """Adds a line to the run's log."""
        with open(self.folder / 'log', 'a') as stream:
            stream.write(text + '\n')

    def add_metrics(self, metrics):
        """Adds the figures of an epoch to metrics.jsonl, in place of earlier ones of that epoch."""
        path = self.folder / 'metrics.jsonl'
        lines = path.read_text(errors='replace').splitlines() if path.exists() else []
        numbers = [epoch_of(line) for line in lines]
        if None in numbers:
            self.log(f'{path}: left out {numbers.count(None)} lines that are broken')
        # A run that died between figures and checkpoint does its last epoch again.
        lines = [
            line
            for line, epoch in zip(lines, numbers, strict=True)
            if epoch is not None and epoch < metrics['epoch']
        ]
        text = '\n'.join([*lines, json.dumps(metrics)]) + '\n'
        write_atomically(path, lambda stream: stream.write(text.encode()))

    def save(self, state, which='checkpoint'):
        """Saves a checkpoint; a kill at any moment leaves the old one or the new one.

        Raises OSError, as on a full disk, which keeps the old one.
        """
        try:
            write_atomically(self.checkpoint(which), lambda stream: torch.save(state, stream))
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # which torch.save hides behind its own
                raise error.__context__ from None
            raise


def epoch_of(line):
    """The epoch that a line of metrics.jsonl is of, or None if it is broken."""
    try:
        epoch = json.loads(line)['epoch']
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return epoch if type(epoch) is int else None


def git_commit():
    """The commit that the code is at, '-dirty' behind it where files differ, or ''."""
    command = ['git', '-C', str(REPOSITORY), 'describe', '--always', '--dirty', '--abbrev=40']
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ''
