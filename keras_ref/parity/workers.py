"""Both sides as processes: start them, give them jobs, read what they wrote. Each job is done once."""

import contextlib
import copy
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras_ref.parity.ladder import Arrays
from lit_mnist.errors import InputError
from lit_mnist.runs.signals import Interruption
from lit_mnist.trace.files import TraceInputs, digest, read_arrays

Side = Literal["ours", "theirs"]
MODULES: dict[Side, str] = {"ours": "lit_mnist.trace.worker", "theirs": "keras_ref.trace.worker"}
SILENCE = 600  # seconds without a word from any worker after which it is taken for stuck; 50 steps take one or two
THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
# Of processes side by side, each has a core to itself: the threads of both would wait for one another.
ONE_THREAD_EACH = dict.fromkeys(THREAD_COUNTS, "1")


@dataclass(frozen=True)
class Job:
    """What one side is to do.

    Args:
        side: who.
        name: "facts", "trace", "save", "load" or "results", a job of its worker.
        arguments: of the job, strings and numbers.
        run_id: what the record has to carry; None where it carries none.
    """

    side: Side
    name: str
    arguments: tuple[tuple[str, str | int], ...]
    run_id: str | None = None


class Worker:
    """A process of one side that waits for jobs."""

    def __init__(self, side: Side, log: Path) -> None:
        self.side, self.log = side, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULES[side]],
                bufsize=0,  # so that what has been sent can be selected on, not what is left in a buffer
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | ONE_THREAD_EACH,
            )
        self.job: Job | None = None

    def start(self, job: Job, output: Path) -> None:
        self.job = job
        order = json.dumps({"job": job.name, "output": str(output)} | dict(job.arguments))
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading its answer tells how
            self.process.stdin.write(f"{order}\n".encode())  # type: ignore[union-attr]  # a pipe

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of it.

        Raises:
            InputError: if it reports an error, or has ended.
        """
        line = self.process.stdout.readline()  # type: ignore[union-attr]  # a pipe
        if not line:
            code = self.process.wait()
            raise InputError(f"{MODULES[self.side]} ended with code {code}: {last_line(self.log)}")
        message = json.loads(line)
        if "error" in message:
            raise InputError(message["error"])
        return dict(message)


class Workers:
    """Do jobs, at most one at a time a process, and keep what was recorded. A context manager that ends the processes.

    Args:
        candidate: the port, as package.module:Class.
        directory: for the files.
        data_dir: of MNIST.
        tell: called with a side, what it does, the steps done and their number (0 if it is not known).
        processes: of a side at most, for jobs that do not wait for one another; by default one a core, up to 8.
    """

    def __init__(
        self,
        candidate: str,
        directory: Path,
        data_dir: str,
        tell: Callable[[Side, str, int, int], None] = lambda *_: None,
        processes: int = min(os.cpu_count() or 1, 8),
    ) -> None:
        self.candidate, self.directory, self.data_dir, self.tell = candidate, directory, data_dir, tell
        self.processes = processes
        self.started: list[Worker] = []
        self.done: dict[Side, dict[Job, Arrays]] = {"ours": {}, "theirs": {}}
        self.groups: list[int] = []  # of processes that were started together

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, candidate: str) -> "Workers":
        """The same processes and records of Keras, with another candidate."""
        other = copy.copy(self)
        other.candidate = candidate
        other.done = self.done | {"ours": {}}  # they take some 200 MB a candidate, and go with it
        return other

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """On SIGTERM and Ctrl-C, end the processes and remove the files before this process ends."""
        interruption = Interruption()
        interruption.end_others = self._abandon
        interruption.listen()
        try:
            yield
        finally:
            interruption.stop_listening()

    def _abandon(self) -> None:
        for worker in self.started:
            worker.process.kill()
            worker.process.wait()
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        for worker in self.started:
            with worker.process as process:  # closes its pipes and waits for its end
                process.kill()
        self.started.clear()

    def facts(self) -> tuple[Arrays, Arrays]:
        """What each side is before it trains."""
        sides: tuple[Side, Side] = ("ours", "theirs")
        ours, theirs = self.do([self.job(side, "facts", data_dir=self.data_dir, seeds=20) for side in sides])
        return ours, theirs

    def both(self, inputs: TraceInputs, doing: str = "") -> tuple[Arrays, Arrays]:
        """The records of a training, ours and theirs."""
        ours, theirs = self.do([self.trace("ours", inputs), self.trace("theirs", inputs)], doing)
        return ours, theirs

    def theirs(self, inputs: TraceInputs, doing: str = "") -> Arrays:
        """The record of a training in Keras."""
        return self.do([self.trace("theirs", inputs)], doing)[0]

    def on_devices(self, inputs: TraceInputs, devices: int, kill_after: int | None = None) -> Arrays:
        """The record of our training by several processes together, which are started for it.

        Args:
            inputs: the training.
            devices: how many processes; 1 trains in one that is started for it, too.
            kill_after: the step after which they kill themselves; others then go on from the checkpoint left behind.
        """
        trace = self.trace("ours", inputs)
        killed = f", killed after step {kill_after}" if kill_after else ""
        job = replace(trace, name=f"trace on {devices} devices{killed}")
        if job not in self.done["ours"]:
            self.tell("ours", job.name, 0, 0)
            output = self._output(job)
            flags = {**dict(trace.arguments), "output": output, "devices": devices}
            seconds = 300.0 + len(inputs.batches)
            if kill_after:
                flags |= {"checkpoint": output.with_suffix(".ckpt")}
                self._run_to_end(flags | {"kill_after": kill_after}, seconds, code=-signal.SIGKILL)
            self._run_to_end(flags, seconds)
            self.done["ours"][job] = self._read(job)
        return self.done["ours"][job]

    def _run_to_end(self, flags: dict[str, Any], seconds: float, code: int = 0) -> None:
        """Run `lit_mnist.trace`, which starts processes of its own; none of them stays behind.

        Raises:
            InputError: if it ends with another code, or not in time.
        """
        command = ["lit_mnist.trace", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]
        log = self.directory / "trace.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=file,
                stderr=file,
                env=os.environ | ONE_THREAD_EACH,
                start_new_session=True,
            )
        self.groups.append(process.pid)
        try:
            ended = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{command[0]} did not end within {seconds:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.groups.remove(process.pid)
        if ended != code:
            raise InputError(f"{command[0]} ended with code {ended}: {last_line(log)}")

    def saved(self, inputs: TraceInputs) -> dict[str, Path]:
        """Files in which Keras saved the model with the weights of a training, by kind."""
        directory = self.directory / f"saved-{inputs.dtype}"
        given = dict(self.trace("theirs", inputs).arguments)["inputs"]
        self.do([self.job("theirs", "save", inputs=given, directory=str(directory))])
        return {kind: directory / f"model{kind}" for kind in (".keras", ".weights.h5")}

    def loaded(self, file: Path) -> Arrays:
        """The weights of our model that has loaded a file of Keras."""
        return self.do([self.job("ours", "load", file=str(file))])[0]

    def results(self, side: Side, seeds: int) -> dict[str, np.ndarray]:
        """The results of documented trainings with seeds 0, 1, ... in one array a name, [runs, ...]."""
        jobs = [self.job(side, "results", data_dir=self.data_dir, seed=seed) for seed in range(seeds)]
        results = self.do(jobs, f"{seeds} trainings of 10 epochs")
        return {name: np.stack([result[name] for result in results]) for name in results[0]}

    def job(self, side: Side, name: str, run_id: str | None = None, **arguments: str | int) -> Job:
        if side == "ours":
            arguments["candidate"] = self.candidate
        return Job(side, name, tuple(arguments.items()), run_id)

    def trace(self, side: Side, inputs: TraceInputs) -> Job:
        # The id is a digest of the inputs: what another training wrote can never be taken for this one's record.
        parts = replace(inputs, run_id="").arrays().values()
        run_id = str(digest(np.array([str(digest(array)) for array in parts])))
        path = self.directory / f"{run_id}-in.npz"
        replace(inputs, run_id=run_id).write(path)
        return self.job(side, "trace", run_id, inputs=str(path))

    def do(self, jobs: list[Job], doing: str = "") -> list[Arrays]:
        """Do those of the jobs that were not done before, and return the records of all.

        Raises:
            InputError: if a worker fails, or what it wrote is not the record of its job. The first ends all.
        """
        waiting = [job for job in jobs if job not in self.done[job.side]]
        try:
            with selectors.DefaultSelector() as busy:
                while waiting or busy.get_map():
                    for job in list(waiting):
                        if worker := self._free(job.side):
                            waiting.remove(job)
                            worker.start(job, self._output(job))
                            busy.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                            self.tell(job.side, doing or job.name, 0, 0)
                    answers = busy.select(SILENCE)
                    if not answers:
                        names = " and ".join(MODULES[key.data.side] for key in busy.get_map().values())
                        raise InputError(f"{names}: nothing heard for {SILENCE} s; is the candidate waiting?")
                    for ready, _ in answers:
                        worker = ready.data
                        message = worker.answer()
                        if "done" in message:
                            busy.unregister(ready.fileobj)
                            self._keep(worker)
                        else:
                            self.tell(worker.side, doing or worker.job.name, message["step"], message["steps"])
        except BaseException:
            self.close()
            raise
        return [self.done[job.side][job] for job in jobs]

    def _free(self, side: Side) -> Worker | None:
        same = [worker for worker in self.started if worker.side == side]
        for worker in same:
            if worker.job is None:
                return worker
        if len(same) == self.processes:
            return None
        self.started.append(Worker(side, self.directory / f"{side}-{len(same)}.log"))
        return self.started[-1]

    def _output(self, job: Job) -> Path:
        return self.directory / f"{digest(np.array(repr(job)))}.npz"

    def _keep(self, worker: Worker) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        self.done[job.side][job] = self._read(job)

    def _read(self, job: Job) -> Arrays:
        arrays = read_arrays(self._output(job))
        self._output(job).unlink()
        if job.run_id is not None and str(arrays.get("run_id")) != job.run_id:
            raise InputError(f"{self._output(job)}: the record of another training ({arrays.get('run_id')})")
        return arrays


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
