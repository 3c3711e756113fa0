"""Weights from elsewhere become a run, and a run becomes a file to publish.

python -m utils.convert FILE exp/NAME         a checkpoint of the original, of mmpose 0.x
                                              (hourglass_ae) or of this program
python -m utils.convert exp/NAME out.pth.tar  the latest weights, their config and AP
python -m utils.convert exp/NAME out.pth.tar --checkpoint best
python -m utils.convert exp/NAME out.pth.tar --bfloat16    half the size, loaded as float32
python -m utils.convert exp/NAME out.onnx [--last]   see utils/onnx_model.py; the last stack

The run is tested with test.py -c NAME, and fine-tuned with train.py -e NEW --init exp/NAME.
"""

import copy
import itertools
import json
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights

from utils.checkpoint import check_plain, read_checkpoint, write_atomically
from utils.config import check_config, fill, flatten, load_task
from utils.dist import file_hash
from utils.errors import UserError, exit_code
from utils.onnx_model import is_onnx, write_onnx
from utils.run import find_run
from utils.weights import bare_names, describe_misfits, shorten

POSENET = 'models.posenet.PoseNet'  # the network whose sizes follow from its weights
FIRST, MMPOSE_FIRST = 'pre.0.conv.weight', 'stem.0.conv.weight'
# What mmpose's names are called here.
MMPOSE_NAMES = {
    r'stem\.': 'pre.',
    r'hourglass_modules\.': 'features.',
    r'out_convs\.': 'outs.',
    r'remap_feature_convs\.(\d+)\.': r'merge_features.\1.conv.',
    r'remap_out_convs\.(\d+)\.': r'merge_preds.\1.conv.',
}
# What mmpose normalises photos by: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375, over 255.
MMPOSE_INPUT = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
BN_EPS = 1e-5
# Beside tensors mmpose's checkpoints may hold figures as numpy's numbers, under its old names too.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [np.dtype, NUMPY_SCALAR, (NUMPY_SCALAR, 'numpy.core.multiarray.scalar')]
NUMPY_NUMBERS += [type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8')]


def fold_norms(weights, path):
    """The same network without BatchNorm, in evaluation mode; for norms between conv and ReLU.

    weights: by name, 'x.conv.weight' with 'x.bn.*' beside it. Computed in float64. Raises UserError
    where a norm is incomplete or does not fit its convolution.
    """
    folded = dict(weights)
    for layer in [name.removesuffix('.conv.weight') for name in weights if '.conv.weight' in name]:
        conv = weights[f'{layer}.conv.weight'].double()
        names = [f'{layer}.bn.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var')]
        norm = [weights[name].double() for name in names if name in weights]
        if not norm:
            continue
        bias = weights.get(f'{layer}.conv.bias', torch.zeros(conv.shape[:1])).double()
        if conv.ndim != 4 or [value.shape for value in (*norm, bias)] != [conv.shape[:1]] * 5:
            raise UserError(
                f'{path} has a broken norm behind {layer}.conv, as it is called here: expected 4 '
                f'tensors {layer}.bn.* of {tuple(conv.shape[:1])}, found '
                f'{", ".join(str(tuple(value.shape)) for value in norm)}'
            )
        gain, offset, mean, variance = norm
        fused = fuse_conv_bn_weights(conv, bias, mean, variance, BN_EPS, gain, offset)
        folded[f'{layer}.conv.weight'], folded[f'{layer}.conv.bias'] = (v.float() for v in fused)
        for name in (*names, f'{layer}.bn.num_batches_tracked'):
            folded.pop(name, None)
    return folded


def from_mmpose(state_dict, path):
    """PoseNet's weights, under its names, from those of mmpose 0.x. Raises UserError."""
    # Beside its backbone a file may hold a head, which here is the grouping.
    backbone = {name: value for name, value in state_dict.items() if 'backbone.' in name}
    weights = bare_names(backbone or state_dict)
    for old, new in MMPOSE_NAMES.items():
        weights = {re.sub(f'^{old}', new, name): value for name, value in weights.items()}
    return fold_norms(weights, path)


def network_sizes(weights, path):
    """The arguments of PoseNet, from the shapes of its weights. Raises UserError."""

    def width(layer):
        """Output channels of a convolution, or None where there is none."""
        shape = getattr(weights.get(f'{layer}.conv.weight'), 'shape', ())
        return shape[0] or None if len(shape) == 4 else None

    if FIRST not in weights:
        raise UserError(
            f'{path} holds another network: expected names such as {FIRST} (the original, this '
            f'program) or backbone.{MMPOSE_FIRST} (mmpose 0.x, hourglass_ae), found '
            f'{shorten(list(weights)) or "none"}'
        )
    levels = ('up1', 'low2.up1', 'low2.low2.up1', 'low2.low2.low2.up1', 'low2.low2.low2.low2')
    stages = [f'features.0.0.{level}' for level in levels]
    layers = ['pre.0', 'pre.1', 'pre.3', 'pre.4', *stages, 'outs.0']
    if missing := [f'{layer}.conv.weight' for layer in layers if width(layer) is None]:
        raise UserError(
            f'{path} is not a stacked hourglass of this kind: expected also '
            f'{shorten(missing)}, found {shorten(sorted(weights))}'
        )
    widths = [width(stage) for stage in stages]
    steps = {b - a for a, b in itertools.pairwise(widths)}
    if len(steps) > 1 or min(steps) < 0:
        raise UserError(
            f'{path} has hourglass widths {", ".join(map(str, widths))}: expected them to grow by '
            'the same number at each halving (model.increase)'
        )
    return {
        'nstack': sum(bool(re.fullmatch(r'outs\.\d+\.conv\.weight', name)) for name in weights),
        'inp_dim': width('pre.4'),
        'oup_dim': width('outs.0'),
        'bn': 'pre.0.bn.weight' in weights,
        'stem': [width(f'pre.{i}') for i in (0, 1, 3)],
        'increase': steps.pop(),
    }


def config_in(checkpoint, path):
    """The config that a checkpoint of this program carries, or that of the task pose.

    A file from elsewhere cannot name code to run: only those values of its config are used that
    its task's config has as well, and their types are checked; the network and the data provider
    are the task's own.
    """
    if 'config' not in checkpoint:
        return copy.deepcopy(load_task('pose').__config__) | {'run': {'task': 'pose'}}
    try:
        saved = json.loads(json.dumps(checkpoint['config']))  # plain values, or none at all
        run = {'task': saved['run']['task']}
        config = load_task(run['task']).__config__
        for key in ('network', 'data_provider'):
            if saved.get(key) != config[key]:
                raise UserError(f'its {key} is {saved.get(key)!r}: expected {config[key]!r}')
        known = flatten(config)
        values = {key: value for key, value in flatten(saved).items() if key in known}
        return fill(config, values) | {'run': run}
    except (TypeError, KeyError, ValueError, RecursionError):
        raise UserError(f'{path} has a config that is not one of a run') from None
    except UserError as error:
        raise UserError(f'{path} has a config that cannot be used: {error}') from None


def convert(path, run):
    """Makes a run of the weights in a file. Raises a UserError that says what was found instead."""
    if run.folder.exists():
        raise UserError(f'{run.folder} is there already: choose another name')
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        checkpoint = read_checkpoint(path)
    state_dict = checkpoint['state_dict']
    config = config_in(checkpoint, path)
    if MMPOSE_FIRST in bare_names(state_dict):
        kind = 'mmpose 0.x, its norms folded into convolutions'
        weights = from_mmpose(state_dict, path)
        check_plain(weights, path)  # a variance may have been negative
        config['model'] |= MMPOSE_INPUT
    else:
        kind, weights = f'network of the task {config["run"]["task"]}', bare_names(state_dict)
    if config['network'] == POSENET:
        config['model'] |= network_sizes(weights, path)
    check_config(config)
    with torch.device('meta'):  # only names and shapes: a file may claim any size
        network = load_task(config['run']['task']).make_network(config).network
    if problem := describe_misfits(network.state_dict(), weights):
        raise UserError(f'{path} does not fit the network that its shapes suggest: {problem}')
    config['run']['source'] = {'file': path.name, 'sha256': file_hash(path).hex()}
    run.create(config)
    for name, value in weights.items():  # cloned, or a view is saved with all of its storage
        weights[name] = (value.float() if value.is_floating_point() else value).clone()
    run.save({'state_dict': weights, 'config': config})
    sizes = ', '.join(f'{key} {value}' for key, value in config['model'].items())
    print(f'{path}: {kind}, {count_parameters(weights):,} parameters\n{sizes}')
    print(f"{run.folder} is ready: 'python test.py -c {run.name} -m single' tests it, 'python "
          f"train.py -e NEW --init {run.folder}' fine-tunes it")  # fmt: skip


def count_parameters(weights):
    """The number of values that a network learns: all but BatchNorm's statistics."""
    return sum(v.numel() for k, v in weights.items() if not re.search(r'\.(running_|num_)', k))


def measured_figures(run, which):
    """The results that test.py measured with a checkpoint of the run, as a dict by mode.

    Empty if there are none, or if they are older than the checkpoint, hence of other weights.
    """
    path = run.folder / 'results.json'
    if not path.is_file() or path.stat().st_mtime < run.checkpoint(which).stat().st_mtime:
        return {}
    try:
        results = json.loads(path.read_text('utf-8'))
        results = {mode: found for mode, found in results.items() if found['checkpoint'] == which}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f'{path} is not what test.py writes: delete it and test again') from None
    for found in results.values():  # without the folders of this machine
        settings = found.get('settings', [])
        found['settings'] = [re.sub(r'^(data\..*?=).*/(?=.)', r'\1', text) for text in settings]
    return results


def published(run, which):
    """What is published of a run: weights, config, results, and nothing about its machine."""
    source = run.require(which)
    checkpoint = read_checkpoint(source)
    config = run.config('pose')
    if source == run.included:  # published once already
        return checkpoint | {'config': config}
    task = config['run']['task']
    weights = bare_names(checkpoint['state_dict'])
    if config['network'] == POSENET:  # weights that came without a config have that of the task
        config['model'] |= network_sizes(weights, source)
    # Paths are of this machine; what else describes the data stays.
    own = load_task(task).__config__['data']
    data = {k: own.get(k, '') if isinstance(v, str) else v for k, v in config['data'].items()}
    best = checkpoint.get('best', {}).get('AP', -1.0)
    return {
        'state_dict': weights,
        'config': config | {'data': data, 'run': {'task': task}},
        'figures': measured_figures(run, which),
        # How long it trained, in images, too; and the best single-scale AP of its evaluations.
        'training': {k: checkpoint[k] for k in ('epoch', 'step', 'samples') if k in checkpoint}
        | ({'best_AP': best} if best >= 0 else {}),
    }


def publish(run, path, which, bfloat16=False, last=False):
    """Writes what is published of a run: by the name of the file for this program, or as ONNX."""
    if path.exists():
        raise UserError(f'{path} is there already: choose another name, or delete it')
    if not path.parent.is_dir():
        raise UserError(f'there is no folder {path.parent} for {path.name}')
    content = published(run, which)
    weights, figures = content['state_dict'], content['figures']
    if is_onnx(path):
        write_onnx(path, content, last)
    else:
        if bfloat16:  # biases and norms, which are few, stay as they are
            large = {k: v for k, v in weights.items() if v.is_floating_point() and v.ndim > 1}
            weights |= {name: value.bfloat16() for name, value in large.items()}
        write_atomically(path, lambda stream: torch.save(content, stream))
    aps = [f'AP {f["AP"]:.3f} ({mode}, {f["photos"]} photos)' for mode, f in figures.items()]
    if 'best_AP' in content['training']:
        aps.append(f'best AP while training {content["training"]["best_AP"]:.3f}')
    print(
        f'{path}: {path.stat().st_size:,} bytes, {count_parameters(weights):,} parameters '
        f'of {run.checkpoint(which)}, {", ".join(aps) or "no AP: measure one with test.py first"}'
    )
    print(f'SHA-256 {file_hash(path).hex()}')


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='FROM', help='a file, or exp/NAME')
    parser.add_argument('target', metavar='TO', help='exp/NAME, or a file')
    parser.add_argument('--checkpoint', choices=['checkpoint', 'best'], default='checkpoint',
                        help='which one to publish')  # fmt: skip
    parser.add_argument('--bfloat16', action='store_true', help='publish 16 bits per weight')
    parser.add_argument('--last', action='store_true', help='ONNX: the last stack alone')
    args = parser.parse_args()
    if args.bfloat16 if is_onnx(args.target) else args.last:
        parser.error('--last is for an ONNX file, --bfloat16 for a checkpoint')
    if Path(args.source).is_file():
        convert(Path(args.source), find_run(args.target))
        return
    run = find_run(args.source, anywhere=True)
    if not run.folder.is_dir() and not run.checkpoint().is_file():
        raise UserError(f'{args.source} is neither a file nor a run: there is no {run.folder}')
    publish(run, Path(args.target), args.checkpoint, args.bfloat16, args.last)


if __name__ == '__main__':
    sys.exit(exit_code(main))
