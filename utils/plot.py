"""Curves of runs, side by side, from what training wrote into exp/NAME/metrics.jsonl.

python -m utils.plot exp/a exp/b                   curves.png
python -m utils.plot exp/a exp/b --out paper.pdf   or any other format of matplotlib

Losses of training (solid) and validation (dashed), AP and learning rate, against images seen.
"""

import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from utils.checkpoint import write_atomically
from utils.errors import UserError, exit_code
from utils.metrics import read_metrics
from utils.run import find_run

COLUMNS, PANEL = 3, (4.4, 3.2)  # panels in a row; inches of each
# Also that of AP and learning rate, which no other curve accompanies.
TRAIN = {'linestyle': '-', 'marker': 'o', 'ms': 3.5, 'lw': 1.4, 'label': 'training'}
VALID = {'linestyle': '--', 'marker': 's', 'ms': 3.5, 'lw': 1.4, 'label': 'validation'}


def read_epochs(run):
    """The figures of a run, one dict per epoch in order; UserError where there are none.

    The last line may be half, of a run that was killed while another program wrote it.
    """
    path = run.metrics_path
    if not path.is_file():
        raise UserError(f'{path} cannot be read: expected a run that has finished an epoch')
    epochs = read_metrics(path)
    broken = [n for n, e in enumerate(epochs, 1) if not e or not is_number(e.get('images'))]
    if broken and broken[0] < len(epochs):
        raise UserError(f'{path}, line {broken[0]} is no epoch of train.py')
    if len(epochs) == len(broken):
        raise UserError(f'{path} holds no whole epoch yet')
    return epochs[: len(epochs) - len(broken)]


def is_number(value):
    """Whether a value can be drawn: JSON also holds texts, and NaN."""
    return type(value) in (int, float) and math.isfinite(value)


def draw_curves(runs):
    """A matplotlib Figure of {name: epochs}: a panel for each loss, AP and learning rate."""
    keys = list(dict.fromkeys(key for epochs in runs.values() for e in epochs for key in e))
    losses = [key for key in keys if f'valid_{key}' in keys]
    panels = [*losses, 'AP', 'lr']
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure((COLUMNS * PANEL[0], rows * PANEL[1]), dpi=120, layout='constrained')
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for number, epochs in enumerate(runs.values()):
            for key, style in ((panel, TRAIN), (f'valid_{panel}', VALID)):
                curve = [(e['images'], e[key]) for e in epochs if is_number(e.get(key))]
                # A single epoch is a point: without markers it would not be seen.
                mark = style['marker'] if len(curve) <= 30 else ''
                x, y = zip(*curve, strict=True) if curve else ((), ())
                axes.plot(x, y, **style | {'marker': mark}, color=f'C{number % 10}')
        finish(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    # One legend below, where it covers no curve: colours are runs, line styles are splits.
    entries = [Line2D([], [], lw=3, color=f'C{n % 10}', label=name) for n, name in enumerate(runs)]
    entries += [Line2D([], [], color='grey', **style) for style in (TRAIN, VALID)]
    figure.legend(handles=entries, loc='outside lower center', ncols=min(len(entries), 8))
    return figure


def finish(axes, panel):
    """Title and scales of a panel with its curves."""
    axes.set_title({'AP': 'AP, validation, single scale', 'lr': 'learning rate'}.get(panel, panel))
    axes.set_xlabel('images seen')
    axes.grid(alpha=0.3)
    values = [y for line in axes.get_lines() for y in line.get_ydata()]
    if not values:
        axes.text(0.5, 0.5, 'none measured yet', ha='center', transform=axes.transAxes, c='grey')
        axes.set(xticks=[], yticks=[])
        return
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.set_xlim(left=0)
    positive = [y for y in values if y > 0]
    if panel == 'AP':
        axes.set_ylim(0, 1.05 * max(positive, default=1))
    elif positive:
        axes.set_yscale('log')  # zeros, as of a tag loss with nobody to part, are not drawn
        axes.yaxis.set_major_formatter('{x:g}')
        within_a_decade = max(positive) < 10 * min(positive)
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))  # their labels have room
        axes.yaxis.set_minor_formatter('{x:.2g}' if within_a_decade else NullFormatter())


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='exp/NAME')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), metavar='FILE')
    args = parser.parse_args()
    runs = [find_run(text) for text in args.runs]
    figure = draw_curves({run.name: read_epochs(run) for run in runs})
    kind = args.out.suffix.removeprefix('.') or 'png'
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UserError(f'--out {args.out}: expected one of {", ".join(known)} as its ending')
    write_atomically(args.out, lambda stream: figure.savefig(stream, format=kind))
    print(args.out)


if __name__ == '__main__':
    sys.exit(exit_code(main))
