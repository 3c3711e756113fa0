"""metrics.jsonl, a line of figures for every epoch: its one reader and its one writer."""

import json

from utils.checkpoint import write_atomically


def read_metrics(path):
    """The lines of a file: an epoch's figures as a dict, or None where a line is broken."""
    epochs = []
    for line in path.read_text('utf-8', errors='replace').splitlines():
        try:
            epoch = json.loads(line)
        except (ValueError, RecursionError):
            epoch = None
        whole = isinstance(epoch, dict) and type(epoch.get('epoch')) is int
        epochs.append(epoch if whole else None)
    return epochs


def add_metrics(path, metrics):
    """Adds the figures of an epoch, in place of earlier ones of that epoch.

    A run that died between figures and checkpoint does its last epoch again. Returns how many
    broken lines were left out.
    """
    epochs = read_metrics(path) if path.exists() else []
    earlier = [epoch for epoch in epochs if epoch and epoch['epoch'] < metrics['epoch']]
    text = '\n'.join(map(json.dumps, [*earlier, metrics])) + '\n'
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return epochs.count(None)
