"""Bad input ends with exit code 2 and one line that names it, and nothing is written or lost."""

import io
import json
import os
import pickle
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from task import pose
from utils.errors import exit_code
from utils.loading import make_loader
from utils.run import Run


@pytest.fixture
def coco(make_coco):
    return make_coco(people=(1, 2), valid=(1, 1), size=(120, 160))


@pytest.fixture
def run1(coco, configure, work):
    """exp/run1, trained as far as a test needs: its network. A sibling exp/other is there, too."""
    config = configure(*coco.settings) | {'run': {'task': 'pose'}}
    network = pose.make_network(config).network
    for name in ('run1', 'other'):
        Run(name).create(config)
        Run(name).save({'state_dict': network.state_dict()})
    return network


def files(folder):
    """The content of every file under a folder but the lock, which harms nobody."""
    return {
        str(path): path.read_bytes()
        for path in Path(folder).rglob('*')
        if path.is_file() and path.name != 'lock'
    }


@pytest.fixture
def refused(work, call_script):
    """refused(script, *arguments, names=[...]): one line with these words, and no file touched."""

    def check(script, *arguments, names):
        before = files(work)
        done = call_script(script, *arguments)
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith('error: ')
        for name in names:
            assert str(name) in lines[0]
        assert files(work) == before

    return check


@pytest.fixture
def train_refused(coco, tiny, refused):
    """train_refused(*settings, names=[...]): for a new run on the drawn set."""

    def check(*settings, names, arguments=('-e', 'new')):
        command = [*arguments, '--set', *coco.settings, *tiny, *settings]
        refused('train.py', *command, names=names)

    return check


def saved(content, **options):
    """The bytes of a checkpoint."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


# --- the data ---


def test_no_coco(refused, run1):
    refused('train.py', '-e', 'new', names=['data/coco/annotations/person_keypoints_train2014.json',
                                            'data/coco_pose/ref.py', '--set'])  # fmt: skip
    for script, name in (('train.py', 'new'), ('test.py', 'run1')):
        refused(script, '-e', name, '--set', 'data.annotations=no/where.json',
                names=['no/where.json'])  # fmt: skip


def test_no_photos(coco, train_refused, refused, run1):
    """Every place that was tried is named."""
    tried = ['no/where/train2017, no/where;']
    train_refused('data.images=no/where', names=tried)
    refused('test.py', '-c', 'run1', '--set', 'data.images=no/where', names=tried)


def test_a_missing_photo(coco, train_refused, refused, run1):
    coco.path(coco.train_ids[1]).unlink()
    train_refused(names=[f'{coco.train_ids[1]:012d}.jpg'])
    coco.path(coco.valid_ids[1]).unlink()
    refused('test.py', '-c', 'run1', names=[f'{coco.valid_ids[1]:012d}.jpg'])


@pytest.mark.parametrize('share', [0, 0.1, 0.6, 0.98])
def test_a_truncated_photo_in_evaluation(coco, call_script, run1, work, share):
    """It counts as one without detections, and is named."""
    path = coco.path(coco.valid_ids[1])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    check_unread(call_script('test.py', '-c', 'run1'), path, work)


def test_a_photo_that_is_none(coco, call_script, run1, work):
    path = coco.path(coco.valid_ids[0])
    path.write_text('<html>404</html>')
    check_unread(call_script('test.py', '-c', 'run1'), path, work)


def check_unread(done, path, work):
    assert done.returncode == 1 and done.stdout.count(' @[ IoU=') == 10
    first, last = done.stderr.splitlines()
    assert first.startswith(f'warning: photo {path} ') and first.endswith('has no detections')
    assert last == '1 photos could not be read, see the warnings'
    results = json.loads((work / 'exp/run1/results.json').read_text())
    assert results['single']['unread'] == 1 and results['single']['photos'] > 1
    detections = json.loads((work / 'exp/run1/dt.json').read_text())
    assert int(path.stem) not in {detection['image_id'] for detection in detections}


def test_a_photo_breaks_before_an_ap_within_training(coco, call_script, tiny, work):
    path = coco.path(coco.valid_ids[1])
    path.write_bytes(path.read_bytes()[:200])
    twice = 'train.epochs=2', 'train.eval_epochs=1'
    done = call_script('train.py', '-e', 'new', '--set', *coco.settings, *tiny, *twice)
    assert done.returncode == 0
    assert [str(path) in line for line in done.stderr.splitlines()].count(True) == 1
    rows = (work / 'exp/new/metrics.jsonl').read_text().splitlines()
    assert [json.loads(row)['unread'] for row in rows] == [1, 1]
    epochs = [line for line in done.stdout.splitlines() if line.startswith('epoch ')]
    assert len(epochs) == 2 and all('| AP 0.000 (1 photo unread) | ' in line for line in epochs)


@pytest.mark.parametrize(
    'content',
    [b'', b'hello', b'{"images": [', b'\xff\xfe\x00\x81', b'[]', b'null', b'{}', b'{"images": []}'],
)
def test_annotations_that_are_none(coco, train_refused, refused, run1, content):
    coco.annotations.write_bytes(content)
    train_refused(names=[coco.annotations])
    refused('test.py', '-c', 'run1', names=[coco.annotations])


@pytest.mark.parametrize('count', [0, 42, 50])
def test_annotations_without_keypoints(coco, train_refused, refused, run1, count):
    """As in instances_train2017.json, or with the joints of another data set."""
    for entry in coco.content['annotations']:
        entry['keypoints'] = entry['keypoints'][:count]
        if count == 0:
            del entry['keypoints']
    coco.annotations.write_text(json.dumps(coco.content))
    found = {0: 'has no keypoints', 42: 'expected 51 keypoint values of a person, found 42',
             50: 'entry 0 of annotations: expected 48 keypoint values, found 50'}  # fmt: skip
    names = [coco.annotations, found[count], 'COCO keypoints' if count != 42 else 'person']
    train_refused(names=names)
    refused('test.py', '-c', 'run1', names=names)


@pytest.mark.parametrize(
    'change',
    [
        lambda content: content.update(images=None),
        lambda content: content.update(annotations=None),
        lambda content: content.update(images=['a.jpg']),
        lambda content: content.update(annotations=['a']),
        lambda content: content['images'][0].pop('id'),
        lambda content: content['images'][-1].pop('file_name'),
        lambda content: content['annotations'][0].pop('image_id'),
        lambda content: content['annotations'][0].update(category_id='person'),
        lambda content: content['annotations'][0].update(keypoints={}),
        lambda content: content['annotations'][0].update(keypoints=['a'] * 51),
    ],
    ids=['images null', 'annotations null', 'images texts', 'annotations texts', 'image without id',
         'image without name', 'no image_id', 'category by name', 'keypoints an object',
         'keypoints texts'],
)  # fmt: skip
def test_annotations_of_another_form(coco, train_refused, change):
    change(coco.content)
    coco.annotations.write_text(json.dumps(coco.content))
    train_refused(names=[coco.annotations])


def test_validation_ids_that_are_nowhere(make_coco, tiny, refused, run1):
    coco = make_coco(name='others', people=(1, 1), valid=())
    words = [coco.annotations, 'validation photos of COCO', 'data.valid_annotations']
    refused('train.py', '-e', 'new', '--set', *coco.settings, *tiny, names=words)
    refused('test.py', '-c', 'run1', '--set', *coco.settings, names=words)


def test_nobody_to_train_on(make_coco, tiny, refused):
    coco = make_coco(name='empty', people=(0, 0), valid=(1,))
    names = [coco.annotations, 'no image to train on']
    refused('train.py', '-e', 'new', '--set', *coco.settings, *tiny, names=names)


# --- names ---


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_an_unknown_run(refused, run1, script):
    """The runs that are there are listed."""
    refused(script, '-c', 'run2', names=['run2', 'run1', 'other'])


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_no_runs_at_all(refused, script):
    refused(script, '-c', 'run2', names=['run2', 'train.py -e run2'])


@pytest.mark.parametrize(
    'name', ['../run1', 'a/b', '/run1', '..', '.', '', '.run1', 'run1/', 'a b']
)
def test_a_name_with_a_path(train_refused, refused, run1, name):
    train_refused(names=[repr(name)], arguments=('-e', name))
    for script in ('train.py', 'test.py'):
        refused(script, '-c', name, names=[repr(name)])


@pytest.mark.parametrize('name', ['poze', 'loss', '../pose', 'pose.py', ''])
def test_an_unknown_task(train_refused, name):
    train_refused(names=[repr(name), 'pose'], arguments=('-e', 'new', '-t', name))


def test_a_run_that_is_there_is_not_overwritten(train_refused, run1):
    train_refused(names=['exp/run1', 'train.py -c run1'], arguments=('-e', 'run1'))


# --- settings ---


@pytest.mark.parametrize(
    'key, near',
    [('train.batchsze', 'train.batchsize'), ('model.stacks', 'model.nstack'),
     ('batchsize', '.batchsize'), ('train', 'train.'), ('', ''), ('run.task', 'task')],
)  # fmt: skip
def test_an_unknown_key(train_refused, refused, run1, key, near):
    """The nearest one is named."""
    if key != 'run.task':
        train_refused(f'{key}=3', names=[f'--set {key}', near])
    refused('test.py', '-c', 'run1', '--set', f'{key}=3', names=[f'--set {key}'])


@pytest.mark.parametrize(
    'setting',
    [
        'train.batchsize',
        'train.batchsize=',
        'train.batchsize=eight',
        'train.batchsize=8.5',
        'train.batchsize=True',
        'train.batchsize=[8]',
        'train.batchsize=0',
        'train.batchsize=-3',
        'train.augment=1',
        'train.augment=no',
        'train.learning_rate=fast',
        'train.precision=fp8',
        'train.decay_iters=[5]',
        'train.decay_iters=5',
        'model.stem=[4,8]',
        'model.stem=[4,8',
        'model.stem=[4,8,"x"]',
        'model.stem=[4,8,8.5]',
        'model.oup_dim=33',
        'augmentation.scale=[1.0]',
        'test.scales.single=[]',
        'test.scales.single=[0]',
        'data.joints=nose',
        'data.joints=[1,2]',
        'data.skeleton=[0,1]',
        'data.flip_pairs=[[1,2],[3]]',
        'data.flip_pairs=[[1.0,2.0]]',
        'data.sigmas=0.1',
        'data.sigmas=["wide"]',
        'data.joint_order=[0,1.5]',
    ],
)
def test_a_mistyped_value(train_refused, setting):
    train_refused(setting, names=[setting.split('=')[0]])


@pytest.mark.parametrize('setting', ['test.precision=fp8', 'test.refine=no', 'test.batchsize=0'])
def test_a_mistyped_value_in_evaluation(refused, run1, setting):
    refused('test.py', '-c', 'run1', '--set', setting, names=[setting.split('=')[0]])


@pytest.mark.parametrize(
    'settings',
    [('train.input_res=128',), ('train.output_res=32',), ('train.output_res=64',),
     ('train.input_res=72', 'train.output_res=18')],
)  # fmt: skip
def test_an_output_that_is_not_a_quarter_of_the_input(train_refused, refused, run1, settings):
    names = ['train.output_res', 'train.input_res', 'input_res / 4']
    train_refused(*settings, names=names)
    refused('test.py', '-c', 'run1', '--set', *settings, names=names)


@pytest.mark.parametrize(
    'setting, names',
    [
        ('data.joints=["nose","nose"]', ['nose, nose']),
        ('data.skeleton=[[0,1],[0,17]]', ['[0, 17]', '0 to 16']),
        ('data.skeleton=[[-1,0]]', ['[-1, 0]']),
        ('data.flip_pairs=[[1,17]]', ['[1, 17]', '0 to 16']),
        ('data.flip_pairs=[[1,2],[2,3]]', ['joint 2 more than once']),
        ('data.flip_pairs=[[1,2],[1,2]]', ['joint 1 more than once']),
        ('data.sigmas=[0.1]', ['17 numbers', 'left_ear']),
        (f'data.sigmas={[0.0] + 16 * [0.1]}', ['17 numbers above 0']),
        ('data.joint_order=[0,1,2]', ['0 to 16']),
        (f'data.joint_order={[0, *range(16)]}', ['0 to 16']),
    ],
)
def test_joints_that_do_not_fit(train_refused, refused, run1, setting, names):
    names = [setting.split('=')[0], *names]
    train_refused(setting, names=names)
    refused('test.py', '-c', 'run1', '--set', setting, names=names)


# --- checkpoints ---


def broken_checkpoints():
    """Files by name that are no checkpoint, among them real ones cut short or overwritten."""
    rng = np.random.default_rng(0)
    state = {'state_dict': {'pre.0.conv.weight': torch.ones(400)}, 'samples': 4}
    new, old = saved(state), saved(state, _use_new_zipfile_serialization=False)
    return {
        'empty': b'',
        'text': b'hello',
        'noise': rng.bytes(3000),
        'zeros': bytes(3000),
        'half': new[: len(new) // 2],
        'nearly all': new[:-1],
        'overwritten': new[:200] + bytes(300) + new[500:],
        'half of the old format': old[: len(old) // 2],
        'nearly all of the old format': old[:-1],
        'pickle of a dict': pickle.dumps({'state_dict': {}}),
        'pickle that ends early': b'\x80\x02.',
        'pickle of wrong arguments': old.replace(b'_rebuild_tensor_v2', b'_rebuild_tensor_v3'),
        'gzip': b'\x1f\x8b\x08' + rng.bytes(200),
        'a list': saved([1, 2]),
        'no state_dict': saved({'model': {}}),
        'state_dict null': saved({'state_dict': None}),
        'state_dict of numbers': saved({'state_dict': {'pre.0.conv.weight': 3}, 'samples': 4}),
        'state_dict of numbered tensors': saved({'state_dict': {0: torch.ones(3)}, 'samples': 4}),
    }


@pytest.mark.parametrize('kind', broken_checkpoints())
def test_a_broken_checkpoint(refused, run1, kind):
    path = Run('run1').checkpoint()
    path.write_bytes(broken_checkpoints()[kind])
    for script in ('train.py', 'test.py'):
        refused(script, '-c', 'run1', names=[path])


def test_a_foreign_checkpoint(refused, run1, golden):
    """The first few of what is missing, unexpected and of another shape are listed."""
    weights = run1.state_dict()
    for name in [name for name in weights if name.startswith('features.0.1.')]:
        del weights[name]
    weights['head.weight'] = torch.ones(3)
    weights['outs.0.conv.bias'] = torch.ones(99)
    path = Run('run1').checkpoint()
    path.write_bytes(saved({'state_dict': weights}))
    refused('test.py', '-c', 'run1', names=[
        path, '2 missing (features.0.1.conv.weight, features.0.1.conv.bias)',
        '1 unexpected (head.weight)', '1 of another shape (outs.0.conv.bias (99,), not (34,))',
    ])  # fmt: skip
    path.write_bytes(golden('checkpoint.pth.tar').read_bytes())
    refused('test.py', '-c', 'run1', names=[path, 'unexpected', 'of another shape'])


def test_weights_alone_cannot_be_continued(refused, run1, foreign_run):
    refused('train.py', '-c', 'run1', names=['exp/run1', 'test.py -c run1'])
    settings = foreign_run('pretrained')
    refused('train.py', '-c', 'pretrained', '--set', *settings, names=['exp/pretrained'])


@pytest.mark.parametrize('state', [{}, {'optimizer': {}, 'step': 3, 'epoch': 0}])
def test_a_checkpoint_that_lacks_half_of_its_training_state(refused, run1, state):
    path = Run('run1').checkpoint()
    path.write_bytes(saved({'state_dict': run1.state_dict(), 'samples': 6} | state))
    refused('train.py', '-c', 'run1', names=[path])


class Trap:
    """Writes a file where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_nothing_in_a_checkpoint_is_executed(refused, run1, tmp_path, script):
    sprung = tmp_path / 'sprung'
    content = {'state_dict': run1.state_dict(), 'samples': 4, 'extra': Trap(sprung)}
    for data in (
        saved(content),
        saved(content, _use_new_zipfile_serialization=False),
        pickle.dumps(Trap(sprung)),
        pickle.dumps(content),
    ):
        path = Run('run1').checkpoint()
        path.write_bytes(data)
        refused(script, '-c', 'run1', names=[path])
        assert not sprung.exists()
    pickle.loads(data)['extra'].close()
    assert sprung.exists()  # it is a trap


@pytest.mark.parametrize('content', ['', 'hello', '[]', '{}', '{"run": {"task": "nope"}}'])
def test_a_broken_config(refused, run1, content):
    Run('run1').config_path.write_text(content)
    refused('test.py', '-c', 'run1', names=['nope' if 'nope' in content else 'config.json'])


# --- the same in processes of their own ---


def test_the_commands_themselves(run_script, run1, coco, work, tiny):
    """Exit code and output as a shell sees them."""
    before = files(work)
    for command, name in (
        (('train.py', '-e', 'new', '--set', *tiny), 'person_keypoints_train2014.json'),
        (('test.py', '-c', 'run2'), 'exp/run2 has no checkpoint.pth.tar'),
    ):
        done = run_script(*command, cwd=work)
        assert done.returncode == 2 and done.stdout == ''
        assert re.fullmatch(r'error: .*\n', done.stderr) and name in done.stderr
    assert files(work) == before


# --- data workers ---


class Fails(torch.utils.data.Dataset):
    """One sample, which a worker cannot load."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.fail()


@pytest.mark.parametrize('kind', [RuntimeError, EOFError, ConnectionResetError, ValueError])
def test_an_exception_in_a_worker_is_told_as_what_it_is(kind, capsys):
    def fail():
        raise kind('a matrix has no inverse')

    with pytest.raises(kind, match='a matrix has no inverse'):
        exit_code(lambda: list(make_loader(Fails(fail), 1)))
    assert 'memory' not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='there is no SIGKILL')
@pytest.mark.parametrize('end', [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(1)],
                         ids=['killed', 'exited'])  # fmt: skip
def test_a_worker_that_is_gone_is_a_lack_of_memory(end, capsys):
    assert exit_code(lambda: list(make_loader(Fails(end), 1))) == 2
    assert 'out of memory' in capsys.readouterr().err
