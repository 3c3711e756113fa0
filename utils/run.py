"""One experiment is one folder, exp/<name>/: its config, log, figures and checkpoints."""

import contextlib
import copy
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import torch

from utils import dist
from utils.checkpoint import read_checkpoint, write_atomically, write_json
from utils.config import complete, load_task
from utils.errors import UserError

EXPERIMENTS = Path('exp')
REPOSITORY = Path(__file__).parent.parent


def find_run(text, anywhere=False):
    """The Run that 'NAME' or 'exp/NAME' means, as a shell completes it. Raises UserError."""
    return Run(text.removesuffix('/').removeprefix(f'{EXPERIMENTS}/'), anywhere)


class Run:
    """The folder of one experiment. Nothing is written before `create`.

    It is looked for in exp/ of the working folder, and with `anywhere` then in that of the
    repository and, if it has no checkpoint there, among the weights that are part of models/.
    """

    def __init__(self, name, anywhere=False):
        if not re.fullmatch(r'\w[\w.-]*', name):
            raise UserError(
                f'experiment {name!r}: expected a plain name, found a path or odd characters; '
                'runs live in exp/<name>'
            )
        self.name = name
        self.homes = [EXPERIMENTS] + [REPOSITORY / EXPERIMENTS] * anywhere
        homes = [home for home in self.homes if (home / name).is_dir()]
        self.folder = (homes or self.homes)[0] / name
        self.config_path = self.folder / 'config.json'
        self.metrics_path = self.folder / 'metrics.jsonl'
        self.included = REPOSITORY / 'models' / f'{name}.pth.tar' if anywhere else None

    def checkpoint(self, which='checkpoint'):
        """The path of the latest checkpoint, or with 'best' of the best one."""
        path = self.folder / f'{which}.pth.tar'
        alone = self.included and self.included.is_file() and not path.is_file()
        return self.included if alone else path

    def require(self, which='checkpoint'):
        """The path of a checkpoint that is there; UserError that lists the runs that have one."""
        path = self.checkpoint(which)
        if not path.is_file():
            have = sorted({p.parent.name for h in self.homes for p in h.glob(f'*/{path.name}')})
            others = f', or choose one of: {", ".join(have)}' if have else ''
            raise UserError(
                f"{self.folder} has no {path.name}: train it with 'python train.py -e "
                f"{self.name}'{others}"
            )
        return path

    def refuse_checkpoint(self):
        """Raises UserError where there is a checkpoint, over which a new run would write."""
        if self.checkpoint().exists():
            raise UserError(
                f"{self.folder} has a checkpoint: continue it with 'python train.py -c "
                f"{self.name}', or choose another name"
            )

    def weights(self):
        """The path of the weights to start another run from: the best, or else the latest."""
        best = self.checkpoint('best')
        return best if best.is_file() else self.require()

    def config(self, task):
        """The run's own config, or where it has none (foreign weights) that of the task."""
        try:
            return complete(json.loads(self.config_path.read_text('utf-8')))
        except FileNotFoundError:
            if self.checkpoint() == self.included:
                return complete(read_checkpoint(self.included)['config'])
            return copy.deepcopy(load_task(task).__config__) | {'run': {'task': task}}
        except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
            raise UserError(f'{self.config_path} is not the config of a run: {error}') from None

    def is_of_launch(self, marks):
        """Whether it was last started by the torchrun with these marks, see dist.launch_marks."""
        with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
            last = self.config('pose')['run']['commands'][-1]
            return not set(marks).isdisjoint(last['launch'])
        return False

    def lock(self):
        """Keeps other programs from training this run until this one ends, however it ends.

        The lock is that of this process alone: it does not pass to those that load images, which
        may outlive it. Raises UserError where another holds it; a system without locks has none.
        """
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # which Windows lacks

            self.folder.mkdir(parents=True, exist_ok=True)
            self.holder = open(self.folder / 'lock', 'a+', encoding='utf-8')  # open until the end
            try:
                fcntl.lockf(self.holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self.holder.seek(0)
                who = self.holder.read().strip() or 'another program'
                raise UserError(f'{self.folder} is being trained by {who}: end it first') from None
            self.holder.truncate(0)
            self.holder.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            self.holder.flush()

    def create(self, config, launch=(), new=False):
        """Makes the folder and records the config with the command, versions and commit.

        launch: see dist.launch_marks. new: whether this program begins the run, which another may
        have begun, and ended, since it looked. Raises UserError.
        """
        if new:
            self.lock()
            self.refuse_checkpoint()
        record = {
            'command': shlex.join(['python', *sys.argv]),
            'python': sys.version.split()[0],
            'torch': str(torch.__version__),
            'commit': git_commit(),
            'ranks': dist.world_size(),
            'launch': list(launch),
        }
        config['run'].setdefault('commands', []).append(record)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.config_path, config)
        except OSError as error:
            raise UserError(
                f'cannot write {self.config_path} ({error.strerror}): runs need room in '
                f'{EXPERIMENTS.absolute()}'
            ) from None

    def log(self, text):
        """Adds a line to the run's log."""
        with open(self.folder / 'log', 'a', encoding='utf-8') as stream:
            stream.write(text + '\n')

    def add_results(self, name, figures):
        """Adds the figures of an evaluation to results.json, in place of earlier ones."""
        path = self.folder / 'results.json'
        results = {}
        with contextlib.suppress(OSError, ValueError):  # none yet, or cut off by an older version
            results = json.loads(path.read_text('utf-8'))
        write_json(path, (results if isinstance(results, dict) else {}) | {name: figures})

    def save(self, state, which='checkpoint'):
        """Saves a checkpoint; a kill at any moment leaves the old one or the new one.

        Raises OSError, as on a full disk, which keeps the old one.
        """
        try:
            write_atomically(self.checkpoint(which), lambda stream: torch.save(state, stream))
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # which torch.save hides behind its own
                raise error.__context__ from None
            raise


def git_commit():
    """The commit that the code is at, '-dirty' behind it where files differ, or ''."""
    command = ['git', '-C', str(REPOSITORY), 'describe', '--always', '--dirty', '--abbrev=40']
    try:
        return subprocess.run(command, capture_output=True, encoding='utf-8').stdout.strip()
    except OSError:
        return ''
