"""SIGTERM and Ctrl-C: end at once with the right exit code, or where the training can be taken up again."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class StoppedError(Exception):
    """The training stopped because of a signal, a checkpoint behind it.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class Interruption:
    """Take note of the first SIGTERM or Ctrl-C while `deferred`; any other ends the process there and then.

    At once, and not by an exception: that would come up in the middle of an import or of a library's clean-up, whose
    code may swallow it or print it.

    Attributes:
        deferred: whether somebody asks for `noted` and sees to the end.
        noted: number of the signal that came meanwhile, 0 for none.
        last_words: what to print when the process ends at once.
        end_others: ends the processes that this one has started.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.noted = 0
        self.last_words = ""
        self.end_others: Callable[[], None] = lambda: None
        self._earlier: dict[int, Any] = {}

    def listen(self) -> None:
        """Handle both signals from now on; one that is ignored, as Ctrl-C is in a background job, stays so."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            if threading.current_thread() is threading.main_thread() and signal.getsignal(signum) != signal.SIG_IGN:
                self._earlier[signum] = signal.signal(signum, self._handle)

    def stop_listening(self) -> None:
        """Leave both signals to whoever handled them before."""
        for signum, handler in self._earlier.items():
            signal.signal(signum, handler)

    def undefer(self) -> None:
        """End at once from now on, or now, if a signal has come meanwhile."""
        self.deferred = False
        if self.noted:
            self._end(self.noted)

    def _handle(self, signum: int, frame: Any) -> None:
        if self.deferred and not self.noted:
            self.noted = signum
        else:
            self._end(signum)

    def _end(self, signum: int) -> None:
        self.end_others()
        os.write(2, self.last_words.encode(errors="backslashreplace"))
        os._exit(128 + signum)
