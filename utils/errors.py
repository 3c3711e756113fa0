"""The one error that a user can put right, and what a command returns to the shell."""

import multiprocessing
import signal
import sys

from utils import dist


class UserError(Exception):
    """Something that the user can put right; the message says how."""

    def __str__(self):
        # Raised in a DataLoader worker, it arrives with the worker's whole traceback in front.
        return self.args[0].rsplit('UserError: ', 1)[-1].strip()


def exit_code(main):
    """Calls main() and leaves the other ranks; returns the exit code.

    A UserError becomes one line on stderr and the exit code 2. All ranks of a machine raise it
    alike, since they see the same files, and the first of them speaks for the machine.
    """
    try:
        code = main() or 0
    except UserError as error:
        if dist.local_rank() == 0:
            print(f'error: {" ".join(str(error).splitlines())}', file=sys.stderr)
        return 2
    except (RuntimeError, EOFError, ConnectionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if dist.is_loss_of_rank(error):
            print(
                f'error: rank {dist.rank()} lost another rank, see there: {reason}', file=sys.stderr
            )
            return 1
        # The last two come of reading from a worker that has gone.
        if isinstance(error, RuntimeError) and 'DataLoader worker' not in reason:
            raise
        print(
            'error: a process that loads images died, most likely for want of memory '
            f'({reason}): lower num_workers or batchsize (--set), or give the machine more '
            '(shared) memory; what was saved is intact, and training goes on from it with -c',
            file=sys.stderr,
        )
        return 2
    finally:
        end_workers()
    dist.stop()
    return code


def end_workers():
    """Ends the processes that still load images: nobody waits for them any more."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else their death would be an error
    for process in multiprocessing.active_children():
        process.kill()
