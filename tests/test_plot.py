"""Curves of runs: what is read, what is drawn, and what is said where there is nothing."""

import json

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.plot import draw_curves, read_epochs
from utils.run import Run


def epoch(number, **figures):
    """The figures of an epoch as train.py writes them."""
    losses = {'detection': 0.1 / number, 'push': 0.3, 'pull': 0.0}
    valid = {f'valid_{name}': value + 0.1 for name, value in losses.items()}
    lr = {'epoch': number, 'images': 100 * number, 'lr': 1e-3}
    return lr | losses | valid | {'data_wait': 0.1} | figures


@pytest.fixture
def write(work):
    """write(name, epochs, end): the metrics of a run, `end` behind them; the Run."""

    def make(name, epochs, end=''):
        run = Run(name)
        run.folder.mkdir(parents=True)
        text = ''.join(json.dumps(one) + '\n' for one in epochs) + end
        (run.folder / 'metrics.jsonl').write_text(text)
        return run

    return make


def curves_of(axes):
    """(x, y, colour, line style) of every curve that shows something."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()), line.get_color(), line.get_linestyle())
        for line in axes.get_lines()
        if len(line.get_xdata())
    ]


def test_panels_show_the_figures_of_each_run():
    a = [epoch(1), epoch(2, AP=0.2), epoch(3), epoch(4, AP=0.3)]
    b = [epoch(1) | {'lr': 5e-4}]
    figure = draw_curves({'a': a, 'b': b})
    panels = {axes.get_title().split(',')[0]: axes for axes in figure.axes}
    assert list(panels) == ['detection', 'push', 'pull', 'AP', 'learning rate']
    assert curves_of(panels['AP']) == [([200, 400], [0.2, 0.3], 'C0', '-')]
    assert curves_of(panels['detection'])[:2] == [
        ([100, 200, 300, 400], [0.1, 0.05, 0.1 / 3, 0.025], 'C0', '-'),
        ([100, 200, 300, 400], [0.1 + 0.1, 0.05 + 0.1, 0.1 / 3 + 0.1, 0.125], 'C0', '--'),
    ]
    assert curves_of(panels['learning rate'])[1] == ([100], [5e-4], 'C1', '-')
    scales = {name: axes.get_yscale() for name, axes in panels.items()}
    assert scales == dict.fromkeys(panels, 'log') | {'AP': 'linear'}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ['a', 'b', 'training', 'validation']


def test_without_ap_the_panel_says_so():
    figure = draw_curves({'a': [epoch(1)]})
    axes = next(axes for axes in figure.axes if axes.get_title().startswith('AP'))
    assert [text.get_text() for text in axes.texts] == ['none measured yet']


def test_a_single_epoch_can_be_seen():
    figure = draw_curves({'a': [epoch(1)]})
    assert figure.axes[0].get_lines()[0].get_marker() == 'o'


def test_losses_of_zero_and_not_a_number_are_left_out():
    a = [epoch(1, push=0.0, valid_push=0.0), epoch(2, push=0, valid_push=0, detection=float('nan'))]
    figure = draw_curves({'a': a})
    assert figure.axes[1].get_yscale() == 'linear'
    assert curves_of(figure.axes[0])[0][:2] == ([100], [0.1])
    figure.canvas.draw()


@pytest.mark.parametrize('end', ['{"epoch": 3, "ima', '{"epoch": 3}', '\x00\x00', '7\n'])
def test_half_a_last_line_is_left_out(write, end):
    epochs = [epoch(1), epoch(2)]
    assert read_epochs(write('run1', epochs, end)) == epochs


def test_a_line_in_the_middle_that_is_none(write):
    run = write('run1', [epoch(1)], 'hello\n' + json.dumps(epoch(2)))
    with pytest.raises(UserError, match='line 2 is no epoch'):
        read_epochs(run)


def test_the_command_writes_a_picture(write, call_script, work):
    write('a', [epoch(n, AP=n / 10) for n in range(1, 6)])
    write('b', [epoch(n) for n in range(1, 3)])
    done = call_script('utils/plot.py', 'exp/a', 'b')
    assert (done.returncode, done.stdout) == (0, 'curves.png\n'), done.stderr
    picture = cv2.imread('curves.png')
    assert picture.shape[0] > 600 and picture.shape[1] > 1500
    blue, orange = (180, 119, 31), (14, 127, 255)  # matplotlib's first colours, as BGR
    for colour in (blue, orange):
        assert (np.abs(picture.astype(int) - colour).max(2) < 8).sum() > 200
    assert call_script('utils/plot.py', 'a', '--out', 'a.pdf').returncode == 0
    assert (work / 'a.pdf').read_bytes().startswith(b'%PDF')


def test_where_nothing_is_drawn(write, call_script, work):
    write('a', [epoch(1)])
    write('empty', [])
    for arguments, words in (
        (['exp/none'], 'exp/none/metrics.jsonl cannot be read'),
        (['a', 'empty'], 'exp/empty/metrics.jsonl holds no whole epoch'),
        (['../a'], 'expected a plain name'),
        (['a', '--out', 'a.doc'], 'expected one of'),
        (['a', '--out', 'no/a.png'], 'error: no/a.png: No such file'),
    ):
        done = call_script('utils/plot.py', *arguments)
        assert done.returncode == (1 if 'no/a.png' in arguments else 2)
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ['exp']
