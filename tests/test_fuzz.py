"""Damaged files from elsewhere are refused or read right, and nothing in them is ever executed."""

import ast
import io
import json
import math
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from faults import fuzz
from test_imports import ROOT, SOURCES

from data.coco_pose.annotations import read_file
from data.coco_pose.photo import read_photo
from data.coco_pose.splits import open_valid
from task import pose
from utils.checkpoint import read_checkpoint
from utils.config import check_config
from utils.errors import UserError
from utils.metrics import add_metrics
from utils.run import Run

FORBIDDEN = {
    *(
        'eval',
        'exec',
        'compile',
        '__import__',
        'pickle',
        'marshal',
        'shelve',
        'dill',
        'cloudpickle',
    ),
    *('joblib', 'os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput'),
    *('yaml.load', 'torch.jit.load', 'torch.hub'),
}


def test_damaged_files():
    """A short run of tests/faults/fuzz.py: every kind of file, no finding."""
    rows = fuzz.tally(cases=150, seed=5)
    assert sum(row['cases'] for row in rows) == 150
    assert {row['file'] for row in rows} == {
        case.__name__.removesuffix('_case') for case in fuzz.CASES
    }
    assert sum(row['right'] for row in rows) > 20 and sum(row['errors'] for row in rows) > 50
    assert [finding for row in rows for finding in row['findings']] == []


# --- what the fuzzer found, one by one ---


def test_a_flipped_bit_in_a_weight_is_noticed(work, configure):
    """torch.load reads such a file without a word."""
    network = pose.make_network(configure()).network
    run = Run('run1')
    run.folder.mkdir(parents=True)
    run.save({'state_dict': network.state_dict()})
    data = bytearray(run.checkpoint().read_bytes())
    place = data.find(network.state_dict()['outs.0.conv.weight'].numpy().tobytes())
    data[place] ^= 1
    run.checkpoint().write_bytes(data)
    assert torch.load(io.BytesIO(data), weights_only=True)
    with pytest.raises(UserError, match='checkpoint.pth.tar cannot be read as a checkpoint'):
        read_checkpoint(run.checkpoint())


@pytest.mark.parametrize(
    'value',
    [
        torch.tensor([1.0, math.nan]),
        torch.tensor([1.0, math.inf]),
        torch.tensor([1.0, -math.inf]),
        torch.zeros(1).expand(2),
        torch.zeros(2, dtype=torch.complex64),
        torch.empty(2, device='meta'),
        torch.zeros(2).to_sparse(),
        torch.zeros(2).to(torch.float8_e4m3fn),
    ],
    ids=['nan', 'inf', '-inf', 'repeated', 'complex', 'meta', 'sparse', 'float8'],
)
def test_weights_that_are_no_plain_numbers(tmp_path, value):
    path = tmp_path / 'weights.pth.tar'
    fine = {'a.weight': torch.ones(2), 'a.empty': torch.zeros(0)}
    torch.save({'state_dict': {**fine, 'b.weight': value}}, path)
    with pytest.raises(UserError, match='weights.pth.tar .* finite numbers: b.weight'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'name, found',
    [
        ('/etc/hosts', None),
        ('../x.jpg', None),
        ('a/../../x.jpg', None),
        ('a\\..\\x.jpg', None),
        ('C:\\x.jpg', None),
        ('a\0b', None),
        ('', None),
        ('a..b/..c.jpg', 'a..b/..c.jpg'),
        ('train/x.jpg', 'train/x.jpg'),
    ],
)
def test_photos_stay_in_their_folder(make_coco, name, found):
    coco = make_coco()
    coco.content['images'][1]['file_name'] = name
    coco.annotations.write_text(json.dumps(coco.content))
    if found:
        assert read_file(coco.annotations).names[1] == found
        return
    with pytest.raises(UserError, match='entry 1 of images: file_name .* expected a path inside'):
        read_file(coco.annotations)


@pytest.mark.parametrize(
    'region',
    [
        {'size': [80, 100], 'counts': [5, 3]},
        {'size': [80, 100], 'counts': [0, 8001]},
        {'size': [80, 100], 'counts': [-1, 8001]},
        {'size': [100, 80], 'counts': [8000]},
        {'size': [10**9, 10**9], 'counts': [10**18]},
        {'size': [80, 100], 'counts': 'o' * 1000},
        {'size': [80, 100]},
        [[0, 0, 1e9, 0, 5, 5]],
        [[0, 0, 9e4, 9e4] * 100],
        [[0, 0, math.nan, 1, 2, 2]],
        [[0, 0, 1, 1]],
        [0, 0, 1, 1, 2, 2],
        'counts',
    ],
)
def test_regions_that_cannot_be_drawn(make_coco, region):
    """pycocotools shows stale memory, takes minutes, or crashes."""
    coco = make_coco(crowd='runs')
    coco.content['annotations'][-1]['segmentation'] = region
    coco.annotations.write_text(json.dumps(coco.content))
    with pytest.raises(UserError, match='entry .* of annotations: .*segmentation'):
        read_file(coco.annotations)


@pytest.mark.parametrize('ids', [lambda n: n, lambda n: 5, lambda n: str(n), lambda n: None])
def test_the_ids_of_annotations_do_not_matter(make_coco, configure, ids):
    """COCO's evaluation takes a person with the id 0 for none, and people with one id for one."""
    coco = make_coco(valid=(2, 1))
    for number, entry in enumerate(coco.content['annotations'][::-1]):
        entry['id'] = ids(number)
    coco.annotations.write_text(json.dumps(coco.content))
    split = open_valid(configure(*coco.settings)['data'])
    fuzz.check_truth(split)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp'])
def test_a_photo_that_claims_to_be_huge(tmp_path, suffix):
    """Its memory would be taken before the decoder finds that it is small."""
    _, data = cv2.imencode(suffix, np.zeros((60, 80, 3), np.uint8))
    data, size = data.tobytes(), {'.jpg': '>HH', '.png': '>II', '.bmp': '<ii'}[suffix]
    sides = (80, 60) if suffix != '.jpg' else (60, 80)
    assert data.count(struct.pack(size, *sides)) == 1
    path = tmp_path / f'photo{suffix}'
    data = data.replace(struct.pack(size, *sides), struct.pack(size, 30000, 30000))
    if suffix == '.png':  # whose header has a check sum
        data = data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]
    path.write_bytes(data)
    with pytest.raises(UserError, match='photo.* claims 900,000,000 pixels'):
        read_photo(path)


@pytest.mark.parametrize(
    'key, value',
    [('train.batchsize', '2'), ('train.seed', -1), ('train.sigma', math.nan), ('model.nstack', 1e9),
     ('model.inp_dim', 10**9), ('train', 5), ('train.batchsiz', 2), ('test.scales', {'single': []}),
     ('network', 'os.system'), ('network', 'models.posenet.torch'), ('data_provider', 'os'),
     ('data.images', 'a\0b'), ('run.commands', 3), ('train.learning_rate', 10**400)],
)  # fmt: skip
def test_values_of_a_config_that_cannot_be(work, configure, key, value):
    """One line that names the key, whatever the type."""
    config = configure() | {'run': {'task': 'pose'}}
    section, _, last = f'.{key}'.rpartition('.')
    inner = config[section[1:]] if section else config
    inner[last] = value
    run = Run('run1')
    run.create(config) if key != 'run.commands' else run.folder.mkdir(parents=True)
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=key if key != 'run.commands' else 'config.json'):
        check_config(run.config('pose'))


def test_a_broken_line_of_metrics_costs_no_other(work):
    run = Run('run1')
    run.folder.mkdir(parents=True)
    path = run.folder / 'metrics.jsonl'
    path.write_bytes(b'{"epoch": 1}\n{"epo\n\xff\n[]\n{"epoch": "2"}\n{"epoch": 2}\n{"epoch": 3}\n')
    assert add_metrics(path, {'epoch': 3, 'step': 30}) == 4
    epochs = [json.loads(line) for line in path.read_text().splitlines()]
    assert epochs == [{'epoch': 1}, {'epoch': 2}, {'epoch': 3, 'step': 30}]


# --- sources ---


def unsafe(text):
    """What in a source runs code that comes from elsewhere, as 'line 3: eval'."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            names = {name}
            if name == 'torch.load' and options.get('weights_only') != 'True':
                names.add('torch.load without weights_only')
            if (
                name in ('np.load', 'numpy.load')
                and options.get('allow_pickle', 'False') != 'False'
            ):
                names.add('np.load with pickle')
            if options.get('shell', 'False') != 'False':
                names.add('shell')
            names -= {name} - FORBIDDEN
            found += [f'line {node.lineno}: {name}' for name in names]
            continue
        found += [f'line {node.lineno}: {name}' for name in names & FORBIDDEN]
    return found


@pytest.mark.parametrize('source', SOURCES)
def test_nothing_from_elsewhere_is_executed(source):
    assert unsafe((ROOT / source).read_text()) == []


@pytest.mark.parametrize(
    'text',
    ['eval(x)', 'exec(x)', 'import pickle', 'from pickle import loads', 'os.system(x)',
     'subprocess.run(x, shell=True)', 'subprocess.run(x, shell=y)', 'torch.load(x)',
     'torch.load(x, weights_only=False)', 'np.load(x, allow_pickle=True)', 'from os import system'],
)  # fmt: skip
def test_what_would_be_found(text):
    assert unsafe(text)


def test_what_is_allowed():
    text = (
        'network.eval()\nsubprocess.run(["git"])\ntorch.load(x, weights_only=True)\nre.compile(x)'
    )
    assert unsafe(text) == []
