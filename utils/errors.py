"""The one error that a user can put right, and what a command returns to the shell."""

import functools
import importlib
import multiprocessing
import os
import re
import signal
import sys

from utils import dist

try:  # before any other module does
    import cv2  # noqa: F401
except ImportError as error:
    sys.exit(
        f"error: OpenCV cannot be loaded ({error}): 'apt install libgl1 libglib2.0-0' if it lacks "
        "these, or 'pip install opencv-python-headless' in its place"
    )


class UserError(Exception):
    """Something that the user can put right; the message says how."""

    def __str__(self):
        # Raised in a DataLoader worker, it arrives with the worker's whole traceback in front.
        return self.args[0].rsplit('UserError: ', 1)[-1].strip()


@functools.cache
def warn_once(text):
    """Prints a warning on stderr, the first time that this process has it."""
    print(f'warning: {text}', file=sys.stderr, flush=True)


def import_extra(name):
    """The module of an optional package, see requirements-extra.txt. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'{name} cannot be imported ({error}): pip install -r requirements-extra.txt'
        ) from None


def exit_code(main):
    """Calls main() and leaves the other ranks; returns the exit code.

    A UserError becomes one line on stderr and the exit code 2, a file that cannot be written the
    exit code 1, and Ctrl-C 130. Ranks that raise the same one say it once per machine.
    """
    if hasattr(sys.stdout, 'reconfigure'):  # a terminal may lack letters, as of joints' names
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        code = main() or 0
    except (UserError, dist.LaunchError) as error:
        code = say(error, 2)
    except KeyboardInterrupt:
        code = say('interrupted', 128 + signal.SIGINT)
    except (RuntimeError, EOFError, ConnectionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        # The last two come from reading from a worker that has gone, or were raised within one.
        gone = not isinstance(error, RuntimeError) and not reason.startswith('Caught ')
        if dist.is_loss_of_rank(error):
            code, rank = 1, dist.rank()
            print(f'error: rank {rank} lost another rank, see there: {reason}', file=sys.stderr)
        elif gone or re.search('killed by signal|exited unexpectedly', reason):
            code = say(
                f'a process that loads images died, most likely out of memory ({reason}): lower '
                'num_workers or batchsize (--set), or give the machine more (shared) memory; what '
                'was saved is intact, and training goes on from it with -c',
                2,
            )
        else:
            raise
    except OSError as error:
        if str(error).startswith('Caught '):  # in a worker
            raise
        named = error.filename and error.strerror
        code = say(f'{error.filename}: {error.strerror}' if named else error, 1)
    else:
        dist.stop()
    finally:
        end_workers()
    if dist.active():
        # The threads of the process group may abort a process that ends the usual way.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def say(error, code):
    """Prints an error in one line, unless another rank of this machine has; returns the code."""
    text = f'error: {" ".join(str(error).splitlines())}'
    if dist.is_first_to_say(text):
        print(text, file=sys.stderr, flush=True)
    return code


def end_workers():
    """Ends the processes that still load images: nobody waits for them any more."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else their death would be an error
    for process in multiprocessing.active_children():
        process.kill()
