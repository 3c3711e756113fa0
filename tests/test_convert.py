"""Weights of the original and of mmpose as runs, fine-tuning them, and publishing a run."""

import argparse
import copy
import hashlib
import json
import os
import sys
import types
import warnings

import cv2
import numpy as np
import pytest
import torch

from models.posenet import PoseNet
from task import small
from task.pose import PoseTask, make_network
from test import load, multiperson
from utils.checkpoint import read_checkpoint
from utils.config import complete
from utils.convert import config_in, from_mmpose
from utils.run import Run


@pytest.fixture
def convert(call_script):
    """convert(FROM, TO): the command, which is to succeed; what it printed."""

    def call(*args):
        done = call_script('utils/convert.py', *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def files(folder):
    """The paths below a folder but for the lock of a run, which harms nobody."""
    return sorted(path for path in folder.rglob('*') if path.name != 'lock')


@pytest.fixture
def refused(call_script, work):
    """refused(script, *args, names=[...]): one line with these words, and no run is made."""

    def check(script, *args, names):
        before = files(work)
        done = call_script(script, *args)
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith('error: '), done.stderr
        for name in names:
            assert name in lines[0]
        assert files(work) == before

    return check


@pytest.fixture
def mmpose_run(convert, golden, work):
    """exp/mm, converted from mmpose's checkpoint: what the command printed."""
    return convert(golden('mmpose_hourglass_ae.pth'), 'exp/mm')


@pytest.fixture
def tuning(make_coco, tiny):
    """Settings for a training of a moment on drawn photos, with any network."""
    data = make_coco(people=(1, 2))
    return [*data.settings, *(s for s in tiny if not s.startswith('model.'))]


@pytest.fixture
def coco_run(make_coco, configure, work):
    """exp/run1, whose network answers enough to be compared; the settings of its data."""
    data = make_coco(people=(1,), valid=(2, 1))
    low = ['test.detection_val=0.001', 'test.vis=0', 'train.eval_epochs=3']
    config = configure(*data.settings, *low) | {'run': {'task': 'pose'}}
    network = make_network(config).network
    run = Run('run1')
    run.create(config)
    state = {'state_dict': network.state_dict(), 'optimizer': {'state': {}}, 'step': 7, 'epoch': 2}
    run.save(state | {'samples': 14, 'best': {'AP': 0.25, 'valid': 0.1}, 'config': config})
    return data.settings


def weights_of(name):
    return read_checkpoint(Run(name).checkpoint())['state_dict']


# --- from elsewhere ---


def test_mmpose_gives_its_own_figures(mmpose_run, golden, work):
    config = json.loads((work / 'exp' / 'mm' / 'config.json').read_text())
    sizes = {'nstack': 2, 'inp_dim': 16, 'oup_dim': 34, 'bn': False, 'increase': 8}
    assert sizes.items() <= config['model'].items()
    assert [255 * v for v in config['model']['mean']] == pytest.approx([123.675, 116.28, 103.53])
    assert [255 * v for v in config['model']['std']] == pytest.approx([58.395, 57.12, 57.375])
    assert 'nstack 2' in mmpose_run and '521,812 parameters' in mmpose_run
    figures = np.load(golden('mmpose_hourglass_ae.npz'))
    predict = load('mm', settings=['test.precision=fp32'])
    wanted, scale = figures['preds'], np.abs(figures['preds']).max()
    photos = torch.from_numpy(figures['imgs'])
    for images in (photos, list(figures['imgs'].astype(np.float32) / 255)):
        np.testing.assert_allclose(predict(images)[0], wanted, rtol=1e-5, atol=1e-5 * scale)
    # Without its mean and std it is another network.
    bare = load('mm', settings=['test.precision=fp32', 'model.mean=[0,0,0]', 'model.std=[1,1,1]'])
    assert np.abs(bare(photos)[0].numpy() - wanted).max() > 0.1 * scale


def test_folding_a_norm_keeps_what_it_computes():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    norm = torch.nn.BatchNorm2d(5).double().train()
    for _ in range(9):
        norm(3 + 2 * torch.randn(4, 5, 6, 6).double())
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    names = {f'backbone.stem.0.conv.{k}': v for k, v in conv.state_dict().items()}
    names |= {f'backbone.stem.0.bn.{k}': v for k, v in norm.state_dict().items()}
    folded = from_mmpose(names | {'keypoint_head.weight': torch.ones(1)}, 'file')
    assert sorted(folded) == ['pre.0.conv.bias', 'pre.0.conv.weight']
    photo = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = norm.eval()(conv(photo.double())).float()
    weight, bias = folded['pre.0.conv.weight'], folded['pre.0.conv.bias']
    found = torch.nn.functional.conv2d(photo, weight, bias, padding=1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_original_gives_what_hand_set_sizes_give(convert, foreign_run, golden):
    settings = foreign_run('pretrained')
    convert(golden('checkpoint.pth.tar'), 'exp/converted')
    by_hand = load('pretrained', settings=[*settings, 'test.precision=fp32'])
    converted = load('converted', settings=['test.precision=fp32'])
    assert converted.config['model'] == by_hand.config['model']
    for name, value in by_hand.network.state_dict().items():
        assert torch.equal(value, converted.network.state_dict()[name]), name
    photo = cv2.imread(str(golden('crowd1.png')), cv2.IMREAD_COLOR_RGB)
    for a, b in zip(multiperson(photo, by_hand), multiperson(photo, converted), strict=True):
        assert len(a) > 0
        np.testing.assert_array_equal(a, b)


def test_numbers_of_numpy_and_an_optimizer_do_no_harm(convert, golden, work):
    checkpoint = torch.load(golden('mmpose_hourglass_ae.pth'), weights_only=True)
    meta = {'hook_msgs': {'best_score': np.float64(0.66)}, 'iter': np.int64(3)}
    torch.save(checkpoint | {'meta': meta, 'optimizer': {'state': {}}}, 'mm.pth')
    convert('mm.pth', 'exp/mm')
    assert set(read_checkpoint(Run('mm').checkpoint())) == {'state_dict', 'config'}


def test_a_run_is_never_overwritten(mmpose_run, golden, refused):
    file = golden('mmpose_hourglass_ae.pth')
    refused('utils/convert.py', file, 'mm', names=['exp/mm', 'another name'])
    refused('utils/convert.py', file, 'exp/../mm', names=['plain name'])


SOME = torch.zeros(1)


@pytest.mark.parametrize(
    'change, names',
    [
        (lambda w: {'backbone.conv1.weight': SOME, 'backbone.bn1.bias': SOME},
         ['pre.0.conv.weight', 'backbone.stem.0.conv.weight', 'found conv1.weight']),
        (lambda w: {}, ['holds no network', 'state_dict']),
        (lambda w: {k: v for k, v in w.items() if '.up1.' not in k},
         ['expected also', 'features.0.0.up1.conv.weight']),
        (lambda w: {k: v for k, v in w.items() if k != 'model.module.outs.0.conv.bias'},
         ['1 missing (outs.0.conv.bias)']),
        (lambda w: w | {'model.module.extra': SOME}, ['1 unexpected (extra)']),
        (lambda w: w | {'model.module.outs.0.conv.bias': SOME},
         ['outs.0.conv.bias (1,), not (34,)']),
        (lambda w: w | {'model.module.outs.0.conv.bias': SOME / 0}, ['finite', 'outs.0.conv.bias']),
        (lambda w: w | {'model.module.pre.4.conv.weight': SOME.expand(10**6, 10**6, 3, 3)},
         ['plain', 'pre.4.conv.weight']),
    ],
    ids=['foreign', 'empty', 'no hourglass', 'missing', 'unexpected', 'shape', 'nan', 'hollow'],
)  # fmt: skip
def test_what_a_file_is_not_it_says(refused, golden, work, change, names):
    weights = torch.load(golden('checkpoint.pth.tar'), map_location='cpu', weights_only=True)
    torch.save({'state_dict': change(weights['state_dict'])}, 'file.pth')
    refused('utils/convert.py', 'file.pth', 'exp/new', names=['file.pth', *names])


def test_widths_that_do_not_grow_evenly(refused, golden, work):
    weights = torch.load(golden('mmpose_hourglass_ae.pth'), weights_only=True)['state_dict']
    for stack in (0, 1):
        layer = f'backbone.hourglass_modules.{stack}.0.low2.low2.low2.low2'
        weights[f'{layer}.conv.weight'] = torch.zeros(64, 48, 3, 3)
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            weights[f'{layer}.bn.{part}'] = torch.ones(64)
    torch.save({'state_dict': weights}, 'file.pth')
    refused('utils/convert.py', 'file.pth', 'exp/new', names=['16, 24, 32, 40, 64', 'increase'])


@pytest.mark.parametrize(
    'entry, value, names',
    [
        ('bn.running_var', torch.full((64,), -1.0), ['finite', 'pre.0.conv.weight']),
        ('bn.bias', torch.zeros(3), ['broken norm behind pre.0.conv', '(64,), (3,), (64,), (64,)']),
        ('conv.bias', torch.zeros(3), ['broken norm behind pre.0.conv']),
    ],
)
def test_norms_that_cannot_be_folded(refused, golden, work, entry, value, names):
    weights = torch.load(golden('mmpose_hourglass_ae.pth'), weights_only=True)['state_dict']
    torch.save({'state_dict': weights | {f'backbone.stem.0.{entry}': value}}, 'file.pth')
    refused('utils/convert.py', 'file.pth', 'exp/new', names=names)


PREFIXES = ['', 'module.', 'backbone.', '_orig_mod.module.', 'module._orig_mod.model.backbone.']


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('place', ['', 'state_dict', 'model', 'model_state_dict', 'weights', 'ema'])
def test_weights_are_found_wherever_they_are(convert, golden, work, place, prefix):
    """Of the original and of mmpose, whose own prefix may be gone."""
    for number, file in enumerate(('checkpoint.pth.tar', 'mmpose_hourglass_ae.pth')):
        weights = torch.load(golden(file), 'cpu', weights_only=False)['state_dict']
        bare = {name.removeprefix('model.module.'): v for name, v in weights.items()}
        bare = {name.removeprefix('backbone.'): value for name, value in bare.items()}
        content = {prefix + name: value for name, value in bare.items()}
        torch.save({place: content, 'epoch': 3} if place else content, 'file.pth')
        convert('file.pth', f'exp/new{number}')
        convert(golden(file), f'exp/old{number}')
        new, old = weights_of(f'new{number}'), weights_of(f'old{number}')
        assert new.keys() == old.keys() and all(torch.equal(new[k], old[k]) for k in old)


def test_weights_as_safetensors(convert, refused, golden, work, monkeypatch):
    """Read by another package where it is installed; its stand-in reads torch's own format."""
    weights = torch.load(golden('checkpoint.pth.tar'), 'cpu', weights_only=False)['state_dict']
    torch.save(weights, 'file.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    refused('utils/convert.py', 'file.safetensors', 'exp/new', names=['pip install safetensors'])
    stand_in = types.SimpleNamespace(load_file=lambda path: torch.load(path.open('rb')))
    monkeypatch.setitem(sys.modules, 'safetensors', types.SimpleNamespace(torch=stand_in))
    monkeypatch.setitem(sys.modules, 'safetensors.torch', stand_in)
    convert('file.safetensors', 'exp/new')
    assert sum(v.numel() for v in weights_of('new').values()) > 1000


def test_what_is_refused_says_what_it_is(refused, work):
    layer = torch.nn.Linear(2, 2)
    torch.save(layer, 'module.pth')
    refused('utils/convert.py', 'module.pth', 'exp/new', names=['torch.nn.modules.linear.Linear'])
    torch.save({'state_dict': layer.state_dict(), 'args': argparse.Namespace(lr=1)}, 'args.pth')
    refused('utils/convert.py', 'args.pth', 'exp/new', names=['argparse.Namespace', 'state_dict'])
    with warnings.catch_warnings(action='ignore'):
        torch.jit.save(torch.jit.script(layer), 'script.pt')
    refused('utils/convert.py', 'script.pt', 'exp/new', names=['TorchScript', 'state_dict'])
    torch.save({'epoch': 3, 'names': ['a']}, 'none.pth')
    refused(
        'utils/convert.py', 'none.pth', 'exp/new', names=['holds no network', 'model_state_dict']
    )


@pytest.mark.parametrize('share', [0, 0.3, 0.99])
def test_a_file_cut_short(refused, golden, work, share):
    content = golden('mmpose_hourglass_ae.pth').read_bytes()
    (work / 'cut.pth').write_bytes(content[: int(share * len(content))])
    refused('utils/convert.py', 'cut.pth', 'exp/new', names=['cut.pth', 'broken'])


def test_nothing_to_convert(refused, work):
    refused('utils/convert.py', 'no.pth', 'exp/new', names=['no.pth', 'neither a file nor a run'])


@pytest.mark.parametrize(
    'config, names',
    [
        ({'network': 'os.system', 'model': {'command': 'touch hacked'}}, ['os.system', 'PoseNet']),
        ({'data_provider': 'antigravity'}, ['antigravity', 'data.coco_pose.dp']),
        ({'train': {'input_res': 'wide'}}, ['train.input_res', 'wide']),
        ({'run': {'task': 'os'}}, ["no task 'os'"]),
        ({'run': None}, ['not one of a run']),
        ({'state_dict': {'a': torch.ones(1)}, 'model': {'nstack': 10**9}}, ['another network']),
        ({'run': {1, 2}}, ['not one of a run']),
    ],
    ids=['network', 'provider', 'type', 'task', 'no run', 'endless', 'no JSON'],
)
def test_a_files_config_is_not_trusted(coco_run, refused, work, config, names):
    content = read_checkpoint(Run('run1').checkpoint())
    weights = config.pop('state_dict', content['state_dict'])
    torch.save({'state_dict': weights, 'config': content['config'] | config}, 'file.pth')
    refused('utils/convert.py', 'file.pth', 'exp/new', names=names)


# --- fine-tuning ---


def test_a_new_run_starts_with_the_weights(mmpose_run, tuning, call_script, work):
    """With a learning rate of 0 they stay, bit by bit; two steps with one change them."""
    for name, rate in (('still', '0.0'), ('new', '1e-4')):
        settings = [*tuning, f'train.learning_rate={rate}', 'train.train_iters=2']
        done = call_script('train.py', '-e', name, '--init', 'exp/mm', '--set', *settings)
        assert done.returncode == 0, done.stderr
        assert 'starts with the weights of exp/mm/checkpoint.pth.tar' in done.stdout
    old, still, new = (weights_of(name) for name in ('mm', 'still', 'new'))
    assert old.keys() == still.keys() == new.keys()
    assert all(torch.equal(old[key], still[key]) for key in old)
    assert not all(torch.equal(old[key], new[key]) for key in old)
    config = json.loads((work / 'exp' / 'new' / 'config.json').read_text())
    assert config['model'] == json.loads((work / 'exp' / 'mm' / 'config.json').read_text())['model']
    assert config['train']['input_res'] == 64
    assert read_checkpoint(Run('new').checkpoint())['step'] == 2
    done = call_script('train.py', '-c', 'new', '--set', 'train.epochs=2')
    assert done.returncode == 0, done.stderr
    assert 'continuing at step 2' in done.stdout and 'starts with' not in done.stdout


def test_other_output_channels_start_anew(mmpose_run, tuning, call_script, work):
    settings = [*tuning, 'train.learning_rate=0.0', 'model.oup_dim=40']
    done = call_script('train.py', '-e', 'new', '--init', 'mm/', '--set', *settings)
    assert done.returncode == 0, done.stderr
    assert 'thus new: merge_preds.0.conv.conv, outs.0.conv, outs.1.conv' in done.stdout
    old, new = weights_of('mm'), weights_of('new')
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed == {key for key in old if key.startswith(('outs.', 'merge_preds.'))}
    assert new['outs.1.conv.weight'].shape == (40, 16, 1, 1)


def test_other_joints_start_anew_and_are_published(mmpose_run, tuning, call_script, convert, work):
    drawn = [f'data.drawn.{s}' for s in ('pictures=[4,2]', 'size=64', 'joints=five')]
    settings = [*drawn, *(s for s in tuning if not s.startswith('data.'))]
    done = call_script('train.py', '-t', 'quickstart', '-e', 'new', '--init', 'mm',
                       '--set', *settings)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'thus new: merge_preds.0.conv.conv, outs.0.conv, outs.1.conv' in done.stdout
    model = Run('new').config('pose')['model']
    assert model == Run('mm').config('pose')['model'] | {'oup_dim': 10}
    convert('new', 'new.pth.tar')
    convert('new.pth.tar', 'back')
    config = Run('back').config('pose')
    assert config['run']['task'] == 'quickstart' and len(config['data']['joints']) == 5
    assert config['data'] == Run('new').config('pose')['data']


def test_the_best_weights_are_the_ones_to_start_from(mmpose_run, work):
    run = Run('mm')
    assert run.weights().name == 'checkpoint.pth.tar'
    run.save({'state_dict': {}}, 'best')
    assert run.weights().name == 'best.pth.tar'


def test_where_a_run_cannot_start(mmpose_run, tuning, refused):
    new = ['train.py', '-e', 'new', '--set', *tuning]
    refused(*new, '--init', 'exp/nothing', names=['exp/nothing', 'choose one of: mm'])
    refused(*new, 'model.nstack=1', '--init', 'mm', names=['exp/mm', 'unexpected', 'model.*'])
    refused('train.py', '-c', 'mm', names=['not continued', '--init exp/mm'])
    refused('train.py', '-c', 'mm', '--init', 'mm', names=['--init is for a new run'])
    refused(*new, 'model.std=[1,0,1]', names=['model.std', 'above 0'])


# --- the normalised input ---


def test_training_and_testing_see_the_same_normalised_photo(configure):
    torch.manual_seed(0)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    plain = make_network(configure()).network
    normal = make_network(configure(f'model.mean={mean}', f'model.std={std}')).network
    normal.load_state_dict(plain.state_dict())  # neither mean nor std is among the weights
    photo = torch.rand(2, 64, 64, 3)
    changed = (photo - torch.tensor(mean)) / torch.tensor(std)
    rest = {
        'masks': torch.ones(2, 16, 16),
        'keypoints': torch.zeros(2, 30, 17, 2, dtype=torch.int64),
        'heatmaps': torch.rand(2, 17, 16, 16),
        'dtype': torch.float32,
    }
    a, b, other = (
        PoseTask(network)(imgs, **rest)['detection']
        for network, imgs in ((normal, photo), (plain, changed), (plain, photo))
    )
    assert torch.equal(a, b) and not torch.allclose(a, other)
    with torch.no_grad():
        assert torch.equal(normal(photo), plain(changed))


def test_no_normalisation_changes_no_bit():
    network = PoseNet(1, 8, 34, False, 4, (4, 8, 8))
    seen = []
    network.pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    photo = torch.rand(1, 64, 64, 3)
    network(photo)
    assert seen[0].data_ptr() == photo.data_ptr()  # not even a copy


def test_a_run_from_before_there_was_a_mean(coco_run, work):
    path = work / 'exp' / 'run1' / 'config.json'
    config = json.loads(path.read_text())
    del config['model']['mean'], config['model']['std']
    path.write_text(json.dumps(config))
    assert not load('run1').network.normalises


# --- publishing ---


def test_a_published_run_comes_back_with_the_same_detections(coco_run, call_script, convert, work):
    exp = work / 'exp'
    assert call_script('test.py', '-c', 'run1').returncode == 0
    printed = convert('exp/run1', 'out.pth.tar')
    content = (work / 'out.pth.tar').read_bytes()
    assert f'SHA-256 {hashlib.sha256(content).hexdigest()}' in printed
    figures = json.loads((exp / 'run1' / 'results.json').read_text())['single']
    assert f'AP {figures["AP"]:.3f} (single, 2 photos)' in printed
    published = read_checkpoint('out.pth.tar')
    assert set(published) == {'state_dict', 'config', 'figures', 'training'}
    assert published['figures']['single'] == figures
    assert published['training'] == {'epoch': 2, 'step': 7, 'samples': 14, 'best_AP': 0.25}
    assert str(work.parent).encode() not in content and b'commands' not in content
    convert('exp/run1', 'again.pth.tar')
    assert (work / 'again.pth.tar').read_bytes() == content

    convert('out.pth.tar', 'exp/back')
    config, back = (Run(name).config('pose') for name in ('run1', 'back'))
    for key in ('model', 'train', 'test', 'augmentation'):
        assert config[key] == back[key]
    assert call_script('test.py', '-c', 'back', '--set', *coco_run).returncode == 0
    detections = (exp / 'run1' / 'dt.json').read_bytes()
    assert len(json.loads(detections)) > 0
    assert (exp / 'back' / 'dt.json').read_bytes() == detections


def test_figures_of_other_weights_are_not_published(coco_run, call_script, convert, work):
    assert call_script('test.py', '-c', 'run1', '--set', *coco_run).returncode == 0
    convert('run1', 'a.pth.tar')
    figures = read_checkpoint('a.pth.tar')['figures']['single']
    assert figures['settings'] == ['data.images=images',
                                   'data.annotations=person_keypoints_train2017.json']  # fmt: skip
    checkpoint = Run('run1').checkpoint()
    later = os.stat(work / 'exp' / 'run1' / 'results.json').st_mtime + 10
    os.utime(checkpoint, (later, later))
    assert 'single' not in convert('run1', 'b.pth.tar')
    assert read_checkpoint('b.pth.tar')['figures'] == {}


def test_weights_without_a_config_are_published_with_their_sizes(convert, foreign_run, work):
    foreign_run('pretrained')
    convert('exp/pretrained', 'out.pth.tar')
    model = read_checkpoint('out.pth.tar')['config']['model']
    assert (model['inp_dim'], model['bn'], model['increase']) == (48, True, 16)


def test_where_nothing_is_published(coco_run, refused, work):
    (work / 'there').write_text('mine')
    for target, name in (('there', 'there already'), ('no/out.pth', 'no folder no')):
        refused('utils/convert.py', 'run1', target, names=[name])
    refused('utils/convert.py', 'run1', 'out', '--checkpoint', 'best', names=['no best.pth.tar'])


def test_published_weights_from_before_a_key_do_as_they_did():
    """Converted back they find the same people, whatever their task says today."""
    saved = copy.deepcopy(small.__config__) | {'run': {'task': 'small'}}
    del saved['test']['subpixel']
    assert small.__config__['test']['subpixel']
    assert not config_in({'config': saved}, 'file')['test']['subpixel']
    assert not complete(saved)['test']['subpixel']
