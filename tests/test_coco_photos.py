"""The default network, on real photos: they lie beside the repository, see the `shared` fixture."""

import json
import signal

import numpy as np
import pytest


@pytest.fixture
def photos(shared):
    """Settings of --set for the four photos, for training as well as for validation."""
    annotations = shared / 'coco' / 'annotations' / 'person_keypoints_sample.json'
    return [
        f'data.images={shared / "coco" / "images"}',
        f'data.annotations={annotations}',
        f'data.valid_annotations={annotations}',
    ]


def test_default_network_trains_and_evaluates_on_photos(photos, work, call_script):
    signal.alarm(280)
    # At half the side: 111 GFLOP a photo instead of 444, which take their time on a CPU.
    sizes = ['train.batchsize=1', 'train.train_iters=1', 'train.epochs=1', 'train.valid_iters=1',
             'train.input_res=256', 'train.output_res=64', 'train.eval_epochs=0']  # fmt: skip
    done = call_script('train.py', '-e', 'run', '--set', *photos, *sizes)
    assert done.returncode == 0, done.stderr
    assert '138,893,840 parameters' in done.stdout
    folder = work / 'exp' / 'run'
    metrics = json.loads((folder / 'metrics.jsonl').read_text())
    assert metrics['step'] == 1
    assert all(np.isfinite(metrics[name]) for name in ('detection', 'push', 'pull'))
    for mode, mirror in (('single', True), ('multi', False)):
        faster = f'test.mirror={mirror}', 'test.scales.multi=[1.5,0.5]'
        done = call_script('test.py', '-c', 'run', '-m', mode, '--limit', 1, '--set', *faster)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('Average Precision') == 5
        results = json.loads((folder / 'results.json').read_text())
        assert results[mode]['photos'] == 1
        assert 0 <= results[mode]['AP'] <= 0.01  # one step teaches nothing
    assert isinstance(json.loads((folder / 'dt.json').read_text()), list)
    assert len(list((folder / 'vis').glob('*.jpg'))) == 1
    for checkpoint in folder.glob('*.pth.tar'):
        checkpoint.unlink()  # pytest keeps its folders for a while, and these are 1.7 GB each
