"""How a training ends before its time: a signal, a full disk, a lost process. In one line, and where it can go on."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning as L

FIRST_PROCESS = "LIT_MNIST_FIRST_PROCESS"  # environment variable: the process that started this one to train with it
SHOW_CURSOR = b"\x1b[?25h"
END = b"\0"  # no signal has this number


ending = threading.Lock()  # held while a signal ends the process


def wait_if_ending() -> None:
    """Return at once, or never: what fails while a signal ends the process and its helpers is no error to tell of."""
    with ending:
        pass


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
        self._earlier_writer: int | None = None
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Handle both signals from now on; one that is ignored, as Ctrl-C is in a background job, stays so.

        In a thread: a handler in Python would wait until the main thread comes back from C++, which it does not while
        it waits for other processes.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)  # Python asks for it
        for signum in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._earlier[signum] = signal.signal(signum, lambda *_: None)
        self._earlier_writer = signal.set_wakeup_fd(writer)  # gets the numbers of the signals
        threading.Thread(target=self._watch, args=(reader, writer), daemon=True, name="interruption").start()

    def stop_listening(self) -> None:
        """Leave both signals to whoever handled them before."""
        for signum, handler in self._earlier.items():
            signal.signal(signum, handler)
        if self._earlier_writer is not None:
            writer = signal.set_wakeup_fd(self._earlier_writer)
            os.write(writer, END)

    def undefer(self) -> None:
        """End at once from now on, or now, if a signal has come meanwhile."""
        with self._lock:
            self.deferred = False
            if self.noted:
                self._end(self.noted)

    def _watch(self, reader: int, writer: int) -> None:
        while (byte := os.read(reader, 1)) != END:
            if byte[0] in self._earlier:
                self._handle(byte[0])
        os.close(reader)
        os.close(writer)

    def _handle(self, signum: int) -> None:
        with self._lock:
            if self.deferred and not self.noted:
                self.noted = signum
            else:
                self._end(signum)

    def _end(self, signum: int) -> None:
        ending.acquire()  # for good
        self.end_others()
        with contextlib.suppress(OSError):
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)  # a progress bar has hidden it
        os.write(2, self.last_words.encode(errors="backslashreplace"))
        os._exit(128 + signum)


def end_with_first_process() -> None:
    """See to it that a process that another one has started to train with it does not outlive it."""
    first = os.environ.get(FIRST_PROCESS)

    def watch() -> None:
        while str(os.getppid()) == first:
            time.sleep(1)
        os._exit(1)

    if first is not None:
        threading.Thread(target=watch, daemon=True, name="first-process").start()


@contextlib.contextmanager
def told_ends(trainer: "L.Trainer", interruption: Interruption, prog: str) -> Iterator[None]:
    """Make a signal, a full disk or a lost process end all processes of a training, with a right code and one line.

    Args:
        trainer: of the training.
        interruption: what tells of signals.
        prog: how the command is called, to begin the line with.

    Raises:
        OSError: of a full disk, or a `ConnectionError` if a process is lost.
    """
    import torch.distributed
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch.strategies.launchers import subprocess_script

    started_by_another = FIRST_PROCESS in os.environ
    os.environ[FIRST_PROCESS] = str(os.getpid())  # for those that Lightning starts
    telling = threading.Lock()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    # Of the processes on a machine the first one tells, if there must be one.
    tells = trainer.local_rank == 0 or (isinstance(environment, LightningEnvironment) and not started_by_another)

    def lost(reason: str) -> str:
        return (
            f"not all {trainer.world_size} processes can be reached, or one has ended ({reason}); "
            f"look at the others, and at MASTER_ADDR and MASTER_PORT. {interruption.last_words.rstrip()}"
        )

    def end_others() -> None:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            for process in launcher.procs:
                process.wait()

    def wait_for_others() -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in getattr(trainer.strategy.launcher, "procs", []):
                process.wait(timeout=10)
        end_others()

    def watch(processes: list[subprocess.Popen]) -> None:
        while not any(process.poll() for process in processes):
            time.sleep(0.5)
        time.sleep(2)  # in most places, this process notices by itself, and knows better why
        telling.acquire()
        code = next(process.returncode for process in processes if process.returncode)
        end_others()
        sys.stderr.write(f"{prog}: error: {lost(f'one of them with code {code}')}\n")
        sys.stderr.flush()
        os._exit(1)

    def observe(processes: list[subprocess.Popen]) -> None:
        threading.Thread(target=watch, args=(processes,), daemon=True, name="watch").start()

    # In place of Lightning's (2.6.6), which kills this process, too, without a word.
    name = "_launch_process_observer"
    earlier = getattr(subprocess_script, name)
    setattr(subprocess_script, name, observe)
    interruption.end_others = end_others
    try:
        yield
    except BaseException as error:
        wait_if_ending()
        telling.acquire()  # the thread that watches, if it was quicker, ends this process
        if isinstance(error, StoppedError):
            if not trainer.is_global_zero:
                sys.exit(0)
            wait_for_others()  # who goes on at once finds them gone
            sys.stderr.write(interruption.last_words)
            sys.exit(error.exit_code)
        end_others()
        if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            if not tells:
                sys.exit(1)
            raise ConnectionError(lost(_reason(error))) from error
        raise
    else:
        telling.acquire()  # whatever happens to the others now changes nothing
        wait_for_others()
    finally:
        setattr(subprocess_script, name, earlier)
        os.environ.pop(FIRST_PROCESS, None)


def _reason(error: Exception) -> str:
    line = str(error).partition("\n")[0].partition(" This is typically")[0]
    return re.sub(r"^\[\S+\] ", "", line).rstrip(".")  # without the place in gloo's source
