"""Both sides of a comparison: what they are asked, by whom, and what they answered. Each question is asked once.

What is wanted next takes turns: the port's side and Keras' work at the same time, but one waits for the other. So what
will be asked for later is told beforehand (`look_ahead`), and done where a core would have nothing to do.
"""

import contextlib
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from keras_ref.parity.golden import Golden, NotInGoldenError, Recorded, alike, comparable, thinned, with_shares
from keras_ref.parity.processes import (
    MODULES,
    ONE_THREAD_EACH,
    Request,
    Side,
    SideProcess,
    first_to_speak,
    last_line,
)
from keras_ref.parity.tolerances import BRIEF
from lit_mnist.errors import InputError
from lit_mnist.trace.files import Arrays, TraceInputs, digest, read_arrays, write_arrays

SEEDS = 20  # whose start weights are looked at
# What a request says of where files and the original are, or asks only for a file: a golden is not about these.
PLACES = ("reference", "data", "data_dir", "directory", "inputs")
FILES_ALONE = ("save", "results")

Progress = Callable[[Side, str, int, int], None]  # is given a side, what it does, the steps done and their number


class Sides:
    """Ask both sides, each in processes of its own, and keep the answers. A context manager that ends the processes.

    Args:
        candidate: the port, as package.module:Class.
        directory: for the files.
        data_dir: of MNIST.
        reference: the original, as package.module:function, or a .keras file; "" for the documented one.
        data: the examples, as package.module:function; "" for MNIST, and the documented model.
        layers: file that maps names of layers to modules; "" for none.
        batch_size: of the trajectory of another model than the documented one.
        steps: of the trajectory.
        seed: decides start weights and batches of the trainings.
        seeds: number of the candidate's own trainings for rung 11.
        accelerator: what the port is trained on, but for rungs 12 and 13.
        progress: is given a side, what it does, the steps done and their number (0 if it is not known).
        golden: that answers in place of Keras' side; None where that side is asked.
        backend: that Keras runs on in float32, tensorflow, jax or torch; all else is asked of it on TensorFlow.
        processes: of a side at most, for requests that do not wait for one another; by default one a core, up to 8.
    """

    def __init__(
        self,
        candidate: str,
        directory: Path,
        data_dir: str,
        reference: str = "",
        data: str = "",
        layers: str = "",
        batch_size: int = 32,
        steps: int = 600,
        seed: int = 0,
        seeds: int = 0,
        accelerator: str = "cpu",
        progress: Progress = lambda *_: None,
        golden: Golden | None = None,
        backend: str = "tensorflow",
        processes: int = min(os.cpu_count() or 1, 8),
    ) -> None:
        self.candidate, self.directory, self.data_dir = candidate, directory, data_dir
        self.named = {"reference": reference, "data": data, "data_dir": data_dir}
        self.data, self.layers, self.batch_size = data, layers, batch_size
        self.steps, self.seed, self.seeds, self.accelerator = steps, seed, seeds, accelerator
        self.progress, self.processes = progress, processes
        self.golden, self.backend = golden, backend
        if golden:
            for name, content in golden.files.items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)
        self.started: list[SideProcess] = []
        self.answers: dict[Side, dict[Request, Arrays]] = {side: {} for side in MODULES}
        self.later: list[tuple[Request, dict[Request, Arrays]]] = []  # and where the answer goes

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all processes, whatever they are doing; the next request starts others."""
        for process in self.started:
            process.end()
        self.started.clear()
        self.later.clear()

    def of(self, candidate: str, reference: str | None = None, data: str = "", **changes: int | str) -> "Sides":
        """The same processes and answers of Keras, with another candidate and other steps or seeds.

        With `reference`, another original, too, trained on `data`.
        """
        other = copy.copy(self)
        vars(other).update(candidate=candidate, **changes)
        if reference is not None:
            other.data = data
            other.named = self.named | {"reference": reference, "data": data}
        other.answers = self.answers | {"ours": {}}  # they take some 200 MB a candidate, and go with it
        return other

    def facts(self) -> tuple[Arrays, Arrays]:
        """What each side is before it trains."""
        doing = "starting; data, layers, start weights"
        of_keras = self.request("theirs", "facts", seeds=SEEDS)
        if self.data:  # the port is mapped to what Keras' side says of its model
            self.ask([of_keras], doing)
        ours, theirs = self.ask([self.request("ours", "facts", seeds=SEEDS), of_keras], doing)
        if self.golden:
            self.golden.check_data(ours)
            ours, theirs = with_shares(alike(ours, theirs), ours), comparable(theirs, ours)
        if "loader/inputs" in ours:
            try:
                (rows,) = self.ask([self.request("theirs", "rows")])
            except NotInGoldenError:  # of a port without a loader of its own
                return ours, theirs
            size = self.batch_size if self.data else int(theirs["documented_batch_sizes"][0])
            theirs = {**theirs, **rows, "batch_size": np.array(size)}
        return ours, theirs

    def recorded(self, trained: bool) -> tuple[dict[str, Recorded], dict[str, bytes]]:
        """What a golden keeps: all that Keras' side has answered so far, and the files that it wrote for the port's.

        Args:
            trained: whether the weights that the long training ends with are wanted, too.
        """
        answers = {}
        for request, answer in self.answers["theirs"].items():
            if request.name in FILES_ALONE:
                continue
            if "data_dir" in answer:  # a directory below this one, whose files go along; else the one that flags name
                path = Path(str(answer["data_dir"]))
                below = path.relative_to(self.directory).as_posix() if path.is_relative_to(self.directory) else ""
                answer = {**answer, "data_dir": np.array(below)}
            if request.name == "facts":
                answer = with_shares(answer, answer)
            answers[asked(request)] = thinned(asked(request), answer)
        if trained:
            answers["trained"] = Recorded(self.trained_weights(), {})
        paths = [path for path in self._cases.rglob("*") if path.is_file()]
        return answers, {path.relative_to(self.directory).as_posix(): path.read_bytes() for path in paths}

    @property
    def _cases(self) -> Path:
        return self.directory / "cases"

    @property
    def mapping(self) -> dict[str, Any]:
        """Of a port of another model than the documented one: `layers`, of each the path of its module and how it was
        found, `trains`, whether it can be trained, and `logits`, whether it gives those in place of probabilities."""
        return dict(json.loads(str(self.facts()[0]["mapping"])))

    @property
    def trains(self) -> bool:
        """Whether the candidate can be trained."""
        return not self.data or bool(self.mapping["trains"])

    @property
    def model(self) -> dict[str, Any]:
        """The description of the Keras model."""
        (facts,) = self.ask([self.request("theirs", "facts", seeds=SEEDS)])
        return dict(json.loads(str(facts["model"])))

    def inputs(self, training: str, dtype: str) -> TraceInputs:
        """What a training starts from, as the original says.

        "trained" are its cases with the weights that the long one ends with, "brief" is the beginning of that.
        """
        request = self.request(
            "theirs",
            "inputs",
            training={"trained": "cases", "brief": "long"}.get(training, training),
            dtype=dtype,
            seed=self.seed,
            steps=min(self.steps, BRIEF) if training == "brief" else self.steps,
            batch_size=self.batch_size,
            directory=str(self._cases),
        )
        arrays = dict(self.ask([request])[0])
        if self.golden and "data_dir" in arrays:
            below = str(arrays["data_dir"])
            arrays["data_dir"] = np.array(str(self.directory / below) if below else self.data_dir)
        inputs = TraceInputs.from_arrays(arrays, Path(training))
        if training == "trained":
            weights = {key: array.astype(dtype) for key, array in self.trained_weights().items()}
            inputs = replace(inputs, weights=weights)
        return inputs

    def trained_weights(self) -> Arrays:
        """The weights that the long training in float64 ends with in Keras, in float32."""
        if self.golden:
            return self.golden.answer("trained")
        inputs = self.inputs("long", "float64")
        if self.trace_request("theirs", inputs) in self.answers["theirs"]:
            final = self.reference("long", "float64")
        else:  # of both, though ours is only wanted later: they run side by side
            _, final = self.trace("long", "float64")
        weights = inputs.weights
        return {key: final[f"weights/{key}"].astype(np.float32) for key in weights}

    def trace(self, training: str, dtype: str) -> tuple[Arrays, Arrays]:
        """The traces of a training, ours and theirs."""
        return self.traces(self.inputs(training, dtype), f"{training} training in {dtype}")

    def traces(self, inputs: TraceInputs, doing: str = "") -> tuple[Arrays, Arrays]:
        """The traces of a training that is given, ours and theirs."""
        ours, theirs = self.ask([self.trace_request("ours", inputs), self.trace_request("theirs", inputs)], doing)
        return alike(ours, theirs), comparable(theirs, ours)

    def reference(self, training: str, dtype: str) -> Arrays:
        """The trace of a training in Keras."""
        return self.ask([self.trace_request("theirs", self.inputs(training, dtype))])[0]

    def unrounded(self, training: str) -> Arrays | None:
        """The same in float64 with constants that keep their bits; None for the documented model, which needs none."""
        if not self.data:
            return None
        return self.ask([self.trace_request("theirs", self.inputs(training, "float64"), exact=1)])[0]

    def saved(self, inputs: TraceInputs) -> dict[str, Path]:
        """Files in which Keras saved the model with the weights of a training, by kind."""
        directory = self.directory / f"saved-{inputs.dtype}-{self._keras(inputs.dtype)}"
        given = dict(self.trace_request("theirs", inputs).arguments)["inputs"]
        self.ask([self.request(self._keras(inputs.dtype), "save", inputs=given, directory=str(directory))])
        return {kind: directory / f"model{kind}" for kind in (".keras", ".weights.h5")}

    def loaded(self, file: Path) -> Arrays:
        """The weights of our model that has loaded a file of Keras."""
        return self.ask([self.request("ours", "load", file=str(file))])[0]

    def look_ahead(self, side: Literal["ours", "theirs"], trainings: Iterable[str], dtypes: Iterable[str]) -> None:
        """Have traces of a side made before they are asked for, whenever a core has nothing else to do.

        Those of the golden are there, and those of another backend's Keras are left to when they are asked for.
        """
        if not self.trains or (side == "theirs" and (self.golden or self.backend != "tensorflow")):
            return
        requests = [self.request("ours", "facts", seeds=SEEDS)] if side == "ours" else []
        for dtype, training in itertools.product(dtypes, trainings):
            if training == "trained" and not self._is_trained():
                continue  # it starts from what the long one ends with
            inputs = self.inputs(training, dtype)
            requests.append(self.trace_request(side, inputs))
            if self.data and side == "theirs" and dtype == "float64":
                requests.append(self.trace_request(side, inputs, exact=1))
        told = {request for request, _ in self.later}
        self.later.extend((request, self.answers[side]) for request in requests if request not in told)

    def _is_trained(self) -> bool:
        """Say whether it is known what the long training ends with."""
        long = self.trace_request("theirs", self.inputs("long", "float64"))
        return self.golden is not None or long in self.answers["theirs"]

    def forget(self) -> None:
        """Forget what the candidate has answered, and what is still wanted of it."""
        self.later[:] = [(request, answers) for request, answers in self.later if answers is not self.answers["ours"]]
        self.answers["ours"].clear()

    def results(self, side: Side, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """The results of trainings with these seeds in one array a name, [runs, ...].

        They start from the side's own start weights and go in its own order: the documented training, or that of
        another model with as many epochs as the long one.
        """
        how: dict[str, Any] = {"accelerator": self.accelerator} if side == "ours" else {}
        epochs = 10
        if self.data:
            epochs = self.inputs("long", "float32").epochs
            how |= {"epochs": epochs, "batch_size": self.batch_size}
        requests = [self.request(side, "results", seed=seed, **how) for seed in seeds]
        results = self.ask(requests, f"{len(seeds)} trainings of {epochs} epochs")
        return {name: np.stack([result[name] for result in results]) for name in results[0]}

    def on_devices(self, training: str, devices: int, kill_after: int | None = None) -> Arrays:
        """The trace of our training by several processes together, which are started for it, in float64.

        Args:
            training: which.
            devices: how many processes; 1 trains in one that is started for it, too.
            kill_after: the step after which they kill themselves; others then resume from the checkpoint left behind.
        """
        inputs = self.inputs(training, "float64")
        trace = self.trace_request("ours", inputs)
        killed = f", killed after step {kill_after}" if kill_after else ""
        request = replace(trace, name=f"trace on {devices} devices{killed}")
        if request not in self.answers["ours"]:
            self.progress("ours", request.name, 0, 0)
            output = self._output(request)
            # What is "" has no value, and where MNIST is, the inputs say.
            flags: dict[str, Any] = {name: value for name, value in trace.arguments if value and name != "data_dir"}
            flags |= {"output": output, "devices": devices, "accelerator": "cpu"}
            seconds = 300.0 + len(inputs.batches)
            if kill_after:
                flags |= {"checkpoint": output.with_suffix(".ckpt")}
                # Of several, what has started them notices, and ends with 1.
                self._run_trace(flags | {"kill_after": kill_after}, seconds, 1 if devices > 1 else -signal.SIGKILL)
            self._run_trace(flags, seconds, 0)
            self.answers["ours"][request] = self._read(request)
        return self.answers["ours"][request]

    def _run_trace(self, flags: dict[str, Any], seconds: float, code: int) -> None:
        """Run `lit_mnist.trace`.

        Raises:
            InputError: if it ends with another code, or not in time.
        """
        command = ["lit_mnist.trace", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]
        log = self.directory / "trace.log"
        with log.open("wb") as file:
            environment = os.environ | ONE_THREAD_EACH | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file, env=environment)
        try:
            ended = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{command[0]} did not end within {seconds:.0f} s") from error
        finally:
            process.terminate()  # what it has started, it ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            process.kill()
        if ended != code:
            raise InputError(f"{command[0]} ended with code {ended}: {last_line(log)}")

    def request(self, side: Side, name: str, run_id: str | None = None, **arguments: str | int) -> Request:
        named: dict[str, str | int] = {**self.named}
        if side == "ours":
            del named["reference"]
            named |= {"candidate": self.candidate, "layers": self.layers, "model": self._model_file()}
        return Request(side, name, tuple((named | arguments).items()), run_id)

    def _model_file(self) -> str:
        """Return where the description of the Keras model is written; "" for the documented one."""
        if not self.data:
            return ""
        path = self.directory / f"{digest(np.array(repr(self.named)))}.json"
        if not path.exists():
            path.write_text(json.dumps(self.model))
        return str(path)

    def _keras(self, dtype: str) -> Side:
        """Return which side of Keras is asked for what is in a precision."""
        others: dict[str, Side] = {"jax": "jax", "torch": "torch"}
        return others.get(self.backend, "theirs") if dtype == "float32" else "theirs"

    def trace_request(self, side: Side, inputs: TraceInputs, exact: int = 0) -> Request:
        # The id is a digest of the inputs: what another training left can never be taken for this one's trace. Where
        # the data are on this machine is left out.
        parts = replace(inputs, run_id="", data_dir="").arrays().values()
        run_id = str(digest(np.array([str(digest(array)) for array in parts])))
        path = self.directory / f"{run_id}-in.npz"
        if not path.exists():
            write_arrays(path, replace(inputs, run_id=run_id).arrays())
        if side == "ours":
            return self.request(side, "trace", run_id, inputs=str(path), accelerator=self.accelerator)
        return self.request(self._keras(inputs.dtype), "trace", run_id, inputs=str(path), exact=exact)

    def ask(self, requests: list[Request], doing: str = "") -> list[Arrays]:
        """Send those of the requests that were not answered before, and return the answers of all.

        Raises:
            NotInGoldenError: if Keras' side is asked and the golden does not hold the answer.
            InputError: if a process fails, or its answer is not that to its request. Those at work are ended.
        """
        try:
            if self.golden:  # first, since what it does not hold need not be held against anything
                for request in requests:
                    if request.side == "theirs":
                        self.answers["theirs"][request] = self.golden.answer(asked(request))
            self._ask(requests, doing)
        except NotInGoldenError:
            raise
        except BaseException:
            for process in [one for one in self.started if one.request is not None or not one.process.is_alive()]:
                process.end()
                self.started.remove(process)
            raise
        return [self.answers[request.side][request] for request in requests]

    def _ask(self, requests: list[Request], doing: str) -> None:
        while missing := [request for request in requests if request not in self.answers[request.side]]:
            under_way = self._under_way()
            for request in missing:
                if request not in under_way and (process := self._free_process(request.side)):
                    self.progress(request.side, doing or request.name, 0, 0)
                    process.send(request, self._output(request), self.answers[request.side])
            self._send_later()
            for process in first_to_speak([one for one in self.started if one.request is not None]):
                self._hear(process, missing, doing)

    def _hear(self, process: SideProcess, missing: list[Request], doing: str) -> None:
        """Take the next message of a process; a failure at what nobody waits for yet is left to who asks for it."""
        request = process.request
        assert request is not None
        try:
            steps = process.receive()
        except InputError:
            if request in missing:
                raise
            process.end()
            self.started.remove(process)
            return
        if steps is None:
            process.answers[request] = self._read(request)
            process.request = None
        elif request in missing:
            self.progress(process.side, doing or request.name, *steps)

    def _send_later(self) -> None:
        """Send what is wanted later while a core has nothing else to do."""
        while self.later and len(self._under_way()) < self.processes:
            request, answers = self.later.pop(0)
            if request not in answers and request not in self._under_way():
                if (process := self._free_process(request.side)) is None:
                    self.later.insert(0, (request, answers))
                    return
                process.send(request, self._output(request), answers)

    def _under_way(self) -> list[Request]:
        return [process.request for process in self.started if process.request is not None]

    def _free_process(self, side: Side) -> SideProcess | None:
        same = [process for process in self.started if process.side == side]
        for process in same:
            if process.request is None:
                return process
        if len(same) == self.processes:
            return None
        self.started.append(SideProcess(side, self.directory / f"{side}-{len(same)}.log"))
        return self.started[-1]

    def _output(self, request: Request) -> Path:
        return self.directory / f"{digest(np.array(repr(request)))}.npz"

    def _read(self, request: Request) -> Arrays:
        path = self._output(request)
        arrays = read_arrays(path)
        path.unlink()
        if request.run_id is not None and str(arrays.get("run_id")) != request.run_id:
            raise InputError(f"{path}: the trace of another training ({arrays.get('run_id')})")
        return arrays


def asked(request: Request) -> str:
    """Return what a request asks for, without where anything is on this machine."""
    arguments = (f"{name}={value}" for name, value in request.arguments if name not in PLACES)
    return f"{request.name}/{','.join(filter(None, (request.run_id, *arguments)))}"
