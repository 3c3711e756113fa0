"""What a long evaluation tells, and what it keeps for the case that it is killed."""

import json

import pytest

from utils import progress
from utils.progress import Lines, Progress


def test_lines_of_the_same_key_are_kept(tmp_path):
    path = tmp_path / 'lines'
    first = Lines(path, {'scales': [1.0]})
    first.append([1])
    first.append([])
    with open(path, 'ab') as stream:
        stream.write(b'[2, 3')  # a kill in the middle of a line
    again = Lines(path, {'scales': [1.0]})
    assert len(again) == 2
    again.append([4])
    assert list(again) == [[1], [], [4]]
    assert len(Lines(path, {'scales': [1.0]})) == 3
    other = Lines(path, {'scales': [2.0]})
    assert len(other) == 0 and list(other) == []
    other.remove()
    assert not path.exists()


@pytest.mark.parametrize('content', [b'', b'\0\xff', b'{"scales": [1.0]}'])
def test_lines_start_anew_in_a_file_of_something_else(tmp_path, content):
    (tmp_path / 'lines').write_bytes(content)
    lines = Lines(tmp_path / 'lines', {'scales': [1.0]})
    lines.append('found')
    assert list(lines) == ['found']
    assert len(Lines(tmp_path / 'lines', {'scales': [1.0]})) == 1


def test_without_a_terminal_progress_is_lines(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    with Progress(4, 'test single', 'photo') as bar:
        for _ in range(4):
            bar.update()
    out, err = capsys.readouterr()
    assert out.splitlines() == ['test single: 2 of 4 photos, eta 00:40',
                                'test single: 4 of 4 photos, eta 00:00']  # fmt: skip
    assert err == ''


def test_a_killed_evaluation_goes_on(run1, call_script, monkeypatch):
    """It computes only what is missing, and ends with the very files of an undisturbed one."""
    _, folder = run1
    batches = []
    append = Lines.append

    def killed(self, content):
        if len(batches) == 2:
            raise MemoryError  # anything that nobody catches
        batches.append(content)
        append(self, content)

    assert call_script('test.py', '-c', 'run1').returncode == 0
    whole = (folder / 'dt.json').read_bytes()
    assert len(json.loads(whole)) > 3 and b'\n ' not in whole
    (folder / 'dt.json').unlink()
    monkeypatch.setattr(Lines, 'append', killed)
    with pytest.raises(MemoryError):
        call_script('test.py', '-c', 'run1')
    assert list(folder.glob('dt.partial-*.jsonl')) and not (folder / 'dt.json').exists()
    monkeypatch.setattr(Lines, 'append', lambda self, content: (batches.append(content),
                                                                append(self, content)))  # fmt: skip
    done = call_script('test.py', '-c', 'run1')
    assert 'goes on behind 2 batches' in done.stdout and len(batches) == 3
    assert (folder / 'dt.json').read_bytes() == whole
    assert not list(folder.glob('dt.partial-*.jsonl'))


@pytest.mark.parametrize('change', ['settings', 'weights', 'photos', 'scales'])
def test_an_evaluation_of_something_else_starts_anew(run1, call_script, monkeypatch, change):
    _, folder = run1
    with monkeypatch.context() as patch:
        patch.setattr(Lines, 'remove', lambda self: None)
        assert call_script('test.py', '-c', 'run1').returncode == 0
    assert 'goes on behind 3 batches' in call_script('test.py', '-c', 'run1').stdout
    with monkeypatch.context() as patch:
        patch.setattr(Lines, 'remove', lambda self: None)
        assert call_script('test.py', '-c', 'run1').returncode == 0
    arguments = {'settings': ['--set', 'test.detection_val=0.2'], 'photos': ['--limit', 2],
                 'scales': ['--scales', 1.5], 'weights': []}[change]  # fmt: skip
    if change == 'weights':
        path = folder / 'checkpoint.pth.tar'
        path.write_bytes(path.read_bytes())
    assert 'goes on' not in call_script('test.py', '-c', 'run1', *arguments).stdout
