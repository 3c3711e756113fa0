"""A run as an ONNX file: what is in it, what onnxruntime answers, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from task.pose import make_network
from test import load, multiperson
from utils import convert, onnx_model
from utils.errors import UserError
from utils.onnx_model import OnnxNetwork, write_onnx
from utils.run import Run

FP32 = ['test.precision=fp32']
MODEL = ('model.nstack=2', 'model.bn=True', 'model.mean=[0.4,0.5,0.6]', 'model.std=[0.2,0.3,0.4]')


@pytest.fixture
def needs_onnx():
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason='needs requirements-extra.txt')


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder that the tests share: exporting takes seconds."""
    return tmp_path_factory.mktemp('onnx')


@pytest.fixture
def run1(kept, needs_onnx, make_coco, configure, work, monkeypatch):
    """exp/run1, whose untrained network finds people in anything, and the same as out.onnx."""
    data = make_coco(people=(1,), valid=(2, 1))
    config = configure(*data.settings, *MODEL, 'test.max_num_people=4', 'test.vis=0')
    network = make_network(config).network
    with torch.no_grad():  # heatmaps about the threshold
        network.outs[1].conv.weight[:17] *= 5
        network.outs[1].conv.bias[:17] = torch.linspace(-0.1, 0.4, 17)
    run = Run('run1')
    run.create(config | {'run': {'task': 'pose'}})
    run.save({'state_dict': network.state_dict(), 'step': 7})
    run.add_results('single', {'AP': 0.25, 'photos': 2, 'checkpoint': 'checkpoint'})
    if not (kept / 'out.onnx').is_file():
        monkeypatch.setattr(sys, 'argv', ['convert.py', 'exp/run1', str(kept / 'out.onnx')])
        convert.main()
    shutil.copy(kept / 'out.onnx', work)
    return data


def test_the_file_answers_as_pytorch_does(run1):
    network, written = load('run1', settings=FP32), load('out.onnx')
    for shape in ((1, 64, 64, 3), (2, 128, 64, 3), (3, 64, 192, 3)):
        photos = torch.randint(0, 256, shape, dtype=torch.uint8)
        wanted = network(photos)[0]
        most = 1e-4 * float(wanted.max() - wanted.min())
        arrays = list(photos.numpy().astype(np.float32) / 255)
        for found in (written(photos)[0], written(arrays)[0]):
            torch.testing.assert_close(found, wanted, rtol=0, atol=most)


def test_what_travels_in_the_file(run1):
    texts = OnnxNetwork('out.onnx').session.get_modelmeta().custom_metadata_map
    found = {key: json.loads(text) for key, text in texts.items()}
    config = load('run1').config
    assert found['joints'] == 'those of COCO' and found['scales'] == config['test']['scales']
    assert found['figures']['single']['AP'] == 0.25 and found['training'] == {'step': 7}
    assert found['config']['model'] == config['model']
    assert found['config']['data']['images'] == found['config']['data']['annotations'] == ''
    assert str(run1.images) not in ''.join(texts.values())


def test_it_finds_the_same_people(run1, call_script, monkeypatch):
    photo = cv2.imread(str(run1.path(run1.valid_ids[0])), cv2.IMREAD_COLOR_RGB)
    wanted = multiperson(photo, load('run1', settings=FP32))
    file = Path('out.onnx').rename('own.onnx')
    shutil.move('exp/run1', 'run1')  # and needs neither the run nor the network
    monkeypatch.setattr('models.posenet.PoseNet.forward', None)
    for a, b in zip(multiperson(photo, load('own.onnx')), wanted, strict=True):
        assert len(a) > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    done = call_script('test.py', '-c', file.absolute(), '--set', *run1.settings)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(Path('exp/own.onnx/dt.json').read_text())) > 0
    assert json.loads(Path('exp/own.onnx/results.json').read_text())['single']['photos'] == 2
    done = call_script('test.py', '-c', 'own.onnx', '--images', run1.path(run1.valid_ids[0]))
    assert done.returncode == 0, done.stderr
    found = json.loads(Path('exp/own.onnx/out/predictions.json').read_text())
    scores = [person['score'] for person in found['annotations']]
    np.testing.assert_allclose(scores, wanted[1], rtol=1e-3)


@pytest.fixture
def exported(run1, monkeypatch):
    """The networks that are exported from here on, in whose place out.onnx is written."""
    import onnx

    networks, program = [], SimpleNamespace(model=SimpleNamespace(metadata_props={}))
    program.model_proto = onnx.load('out.onnx')
    monkeypatch.setattr(onnx_model, 'export', lambda network: networks.append(network) or program)
    return networks


def test_an_answer_that_differs_leaves_no_file(exported):
    content = convert.published(Run('run1'), 'checkpoint')
    write_onnx(Path('same.onnx'), content)
    content['state_dict']['outs.1.conv.bias'][3] += 1
    with pytest.raises(UserError, match='differs from PyTorch.s by 1.*expected at most'):
        write_onnx(Path('other.onnx'), content)
    assert list(Path().glob('*other*')) == []


def test_the_last_stack_alone(exported, call_script):
    """Of the network that is exported; and out.onnx, which has two, is none such."""
    done = call_script('utils/convert.py', 'run1', 'last.onnx', '--last')
    assert done.returncode == 2 and 'differs' in done.stderr and not Path('last.onnx').exists()
    photos = torch.rand(2, 64, 64, 3)
    with torch.no_grad():
        assert torch.equal(exported[0](photos), exported[0].network(photos)[:, 1:])
    assert not exported[0].training


@pytest.mark.parametrize('kind', ['none', 'cut', 'text', 'foreign', 'config'])
def test_files_that_are_refused(run1, call_script, kind):
    import onnx

    content = Path('out.onnx').read_bytes()
    model = onnx.load('out.onnx')
    words = 'cannot be read as an ONNX file'
    if kind == 'none':
        words = 'there is no new.onnx'
    elif kind in ('cut', 'text'):
        Path('new.onnx').write_bytes(content[: len(content) // 2] if kind == 'cut' else b'hello')
    elif kind == 'foreign':
        words = 'of something else'
        del model.metadata_props[:]
        onnx.save(model, 'new.onnx')
    else:
        words = 'no such key'
        config = next(entry for entry in model.metadata_props if entry.key == 'config')
        config.value = json.dumps(json.loads(config.value) | {'code': 'os.system'})
        onnx.save(model, 'new.onnx')
    done = call_script('test.py', '-c', 'new.onnx', '--images', 'a.jpg')
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize('missing', ['onnx', 'onnxscript', 'onnxruntime'])
def test_packages_that_are_missing(configure, work, monkeypatch, missing):
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        package = None if name == missing else SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, package)
    with pytest.raises(UserError, match=f'{missing}.*pip install -r requirements-extra.txt'):
        write_onnx(Path('out.onnx'), {})
    if missing == 'onnxruntime':
        with pytest.raises(UserError, match='pip install -r requirements-extra.txt'):
            load('out.onnx')


def test_only_an_onnx_file_is_named_by_its_path(work):
    with pytest.raises(UserError, match='plain name'):
        load('exp/run1')


@pytest.mark.parametrize('names', [('out.onnx', '--bfloat16'), ('out.pth.tar', '--last')])
def test_options_of_the_other_format(work, call_script, names):
    done = call_script('utils/convert.py', 'exp/run1', *names)
    assert done.returncode == 2 and '--last is for an ONNX file' in done.stderr
