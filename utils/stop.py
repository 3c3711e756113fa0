"""Ctrl-C and SIGTERM, turned into a stop at a moment when nothing is lost."""

import contextlib
import signal


class Interrupted(Exception):
    """The user, or the scheduler, wants the run to stop."""


class Stopper:
    """Notes the first signal; the loop looks at `asked` when a step is done.

    A second Ctrl-C kills as usual. A second SIGTERM says nothing new: a scheduler sends it to every
    process of a job, and torchrun sends it on to its own.
    """

    def __init__(self):
        self.asked = None
        self.waiting = True  # whether a signal waits for the loop to look
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        self.asked = self.asked or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if hasattr(signal, 'SIGCHLD'):
            # The signal may have ended workers, too: their death is no error any more.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self.waiting:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self):
        """Within it a signal need not wait, since nothing is being changed."""
        self.waiting = False
        try:
            if self.asked:
                raise Interrupted
            yield
        except RuntimeError:
            if not self.asked:
                raise
            raise Interrupted from None  # it hit another rank first, and that one has gone
        finally:
            self.waiting = True
