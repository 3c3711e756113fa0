"""The program that tries a GPU: run whole where there is one, else its own logic alone."""

import subprocess
import sys

import pytest
import torch

from tests import gpu


def test_all_is_right_on_this_gpu(with_gpus):
    def run(*command):
        command = [sys.executable, *command]
        return subprocess.run(command, env=with_gpus, capture_output=True, text=True)

    found = torch.backends.cuda.is_built() and run(
        '-c', 'import torch; raise SystemExit(not torch.cuda.is_available())'
    )
    if not found or found.returncode:
        pytest.skip('python -m tests.gpu: there is no GPU')
    done = run('-m', 'tests.gpu', '--quick', '--minutes', '1')
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_wrong_is_found(monkeypatch, capsys):
    """On the CPU: a device that computes something else, and a check that ends with an error."""
    compute = gpu.losses_and_gradients
    monkeypatch.setattr(sys, 'argv', ['gpu', '--device', 'cpu', '--quick'])
    for name in ('steps', 'speed', 'runs', 'overfit', 'loading', 'parts'):
        check = lambda *_, **__: iter([('check', 'found', True)])  # noqa: E731
        check.__name__ = name
        monkeypatch.setattr(gpu, name, check)
    assert gpu.main() == 0
    assert 'several_gpus: skipped, DataParallel needs two GPUs' in capsys.readouterr().out
    calls = []

    def compute_wrongly(*args):
        losses, gradients = compute(*args)
        calls.append(args)
        return losses, gradients * (1 + 0.01 * (len(calls) == 2))

    monkeypatch.setattr(gpu, 'losses_and_gradients', compute_wrongly)
    assert gpu.main() == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if 'WRONG' in line]
    assert line.startswith('fp32 against the CPU')
    monkeypatch.setattr(gpu, 'losses_and_gradients', compute)

    def fail(*_, **__):
        raise ZeroDivisionError('of something')

    monkeypatch.setattr(gpu, 'loading', fail)
    assert gpu.main() == 1 and 'WRONG, ZeroDivisionError' in capsys.readouterr().out
