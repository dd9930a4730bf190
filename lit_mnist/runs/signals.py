"""SIGTERM and Ctrl-C: they end the process at once, or a training after its batch, with a checkpoint behind it."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SHOW_CURSOR = b"\x1b[?25h"


class StoppedError(Exception):
    """A signal ended the work. The text, if any, says how to resume it.

    Args:
        signum: number of the signal.
        text: what to tell the user.
    """

    def __init__(self, signum: int, text: str = "") -> None:
        super().__init__(text)
        self.exit_code = 128 + signum


class SignalHandler:
    """Handle both signals; a context manager that gives them back to whoever handled them before.

    A signal ends the process there and then: not by an exception, which would come up in the middle of an import or of
    a library's clean-up, whose code may swallow it or print it. While `deferred`, the first is kept in `received`
    instead, for a training that looks there after each batch. A signal that is ignored, as Ctrl-C is in a background
    job, stays so. Python runs handlers between two instructions of the main thread; while that waits in C++, for other
    processes, a thread ends the process.

    Args:
        last_words: returns what to print when the process ends.
    """

    def __init__(self, last_words: Callable[[], str] = lambda: "") -> None:
        self.last_words = last_words
        self.deferred = False
        self.received = 0
        self._earlier: dict[int, Any] = {}
        self._numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)  # as Python asks for
        self._ending = threading.Lock()

    def __enter__(self) -> "SignalHandler":
        self._earlier_wakeup = signal.set_wakeup_fd(self._wakeup.fileno())
        threading.Thread(target=self._end_meanwhile, daemon=True, name="signals").start()
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._earlier[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._earlier.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._earlier_wakeup)
        self._wakeup.close()  # which ends the thread

    def defer(self) -> None:
        """From now on keep the first signal in `received`; Lightning has put a handler of its own here meanwhile."""
        self.deferred = True
        for signum in self._earlier:
            signal.signal(signum, self._handle)

    def undefer(self) -> None:
        """End at once from now on, or now, if a signal has come meanwhile."""
        self.deferred = False
        if self.received:
            self._end(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.deferred and not self.received:
            self.received = signum
        else:
            self._end(signum)

    def _end_meanwhile(self) -> None:
        with self._numbers:
            while number := self._numbers.recv(1):
                signum = number[0]
                if signum in self._earlier and signal.getsignal(signum) == self._handle and not self.deferred:
                    self._end(signum)

    def _end(self, signum: int) -> None:
        if not self._ending.acquire(blocking=False):
            return  # the other thread is at it
        if sys.stdout is not None and sys.stdout.isatty():
            os.write(1, SHOW_CURSOR)  # a progress bar has hidden it
        os.write(2, self.last_words().encode(errors="backslashreplace"))
        os._exit(128 + signum)


def exit_on_signals() -> None:
    """Turn the first signal into SystemExit, so that `with` statements clean up; later ones change nothing."""

    def leave(signum: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + signum)

    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, leave)
