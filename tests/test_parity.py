"""The parity ladder: the port climbs it, and every mutant is stopped at the rung that was predicted for it."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from mutants import CORRECT, MUTANTS

from keras_ref import ladder
from keras_ref.ladder import Arrays
from keras_ref.parity import RUNGS, Verdict, Workers, climb, glorot_uniform
from lit_mnist import LitMNIST
from lit_mnist.cli import InputError
from lit_mnist.recording import record, record_facts
from lit_mnist.trace_files import TraceInputs, write_arrays

STEPS = 60  # of the trajectory, for every candidate


class InProcess(Workers):
    """Keras in processes of its own, once for all candidates; the candidates in this process, which has torch."""

    theirs_done: dict[tuple[str, str], Arrays] = {}  # noqa: RUF012  # shared on purpose

    def _run(self, what: str, arguments: Mapping[str, list[str]], run_id: str | None) -> tuple[Arrays, ...]:
        key = run_id or what
        self.done |= self.theirs_done
        if "theirs" in arguments:
            super()._run(what, {"theirs": arguments["theirs"]}, run_id)
            self.theirs_done["theirs", key] = self.done["theirs", key]
        if "ours" in arguments and ("ours", key) not in self.done:
            flags = arguments["ours"]
            if what == "facts":
                self.done["ours", key] = record_facts(self.candidate, flags[1], seeds=20)
            else:
                self.done["ours", key] = record(TraceInputs.read(Path(flags[1])), self.candidate)
        return tuple(self.done[side, key] for side in arguments)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


def climb_all(candidate: type[LitMNIST], work: Path, data_dir: Path) -> list[Verdict]:
    """Climb in float64, as the command does, up to the first rung that does not hold."""
    workers = InProcess(f"{candidate.__module__}:{candidate.__name__}", work, str(data_dir), lambda _: None)
    verdicts = []
    for verdict in climb(workers, range(1, 11), STEPS, seed=0, dtype="float64"):
        verdicts.append(verdict)
        if not verdict.holds:
            break
    return verdicts


@pytest.mark.parametrize("candidate", CORRECT, ids=lambda candidate: candidate.__name__)
def test_a_correct_port_climbs_to_the_top(candidate: type[LitMNIST], work: Path, data_dir: Path) -> None:
    verdicts = climb_all(candidate, work, data_dir)
    assert [verdict.number for verdict in verdicts if verdict.holds] == list(range(1, 11))
    assert all(verdict.comparisons for verdict in verdicts)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_every_mutant_is_stopped_at_its_rung(mutant: type[LitMNIST], work: Path, data_dir: Path) -> None:
    rung, named = MUTANTS[mutant]
    last = climb_all(mutant, work, data_dir)[-1]
    assert not last.holds
    assert last.number == rung, last.shown
    assert named in last.shown.what


def test_every_rung_has_a_mutant_that_it_stops() -> None:
    assert {rung for rung, _ in MUTANTS.values()} == set(RUNGS) - {11}


def test_nan_and_missing_arrays_equal_nothing() -> None:
    good = {"loss": np.array([1.0, 2.0])}
    for ours in ({"loss": np.array([1.0, np.nan])}, {}, {"loss": np.array([1.0])}):
        (found,) = ladder.loss(ours, good)
        assert not found.holds
    (found,) = ladder.loss({"loss": np.array([np.nan])}, {"loss": np.array([np.nan])})
    assert not found.holds
    (found,) = ladder.loss(good, good)
    assert found.holds


@pytest.mark.parametrize(("our_error", "holds"), [(1e-7, True), (1.9e-6, True), (2.1e-6, False), (np.nan, False)])
def test_in_float32_our_error_is_held_against_that_of_keras(our_error: float, holds: bool) -> None:
    exact = {"loss": np.array([1.0, 2.0, 0.5])}
    theirs = {"loss": exact["loss"] + np.array([0, 1e-6, 0])}
    ours = {"loss": exact["loss"] + np.array([0, 0, our_error])}
    (found,) = ladder.loss(ours, theirs, exact)
    assert found.holds == holds


def test_the_largest_difference_is_named_by_its_place() -> None:
    theirs = {"loss": np.zeros((3, 4))}
    ours = {"loss": np.zeros((3, 4))}
    ours["loss"][2, 1] = 1e-3
    (found,) = ladder.loss(ours, theirs)
    assert (found.what, found.difference) == ("loss[2, 1]", 1e-3)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ("no_such_module:Port", "--candidate no_such_module:Port"),
        ("lit_mnist:KerasAdam", "not a LightningModule"),
        ("lit_mnist", "expected package.module:Class"),
    ],
)
def test_a_candidate_that_cannot_be_run_is_an_error_not_a_verdict(
    candidate: str, says: str, command: Command, data_dir: Path
) -> None:
    finished = command("-m", "keras_ref.parity", "--candidate", candidate, "--data_dir", data_dir)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        ("pass", "record of another training"),  # what it finds was written by an earlier run
        ("import os; os.kill(os.getpid(), 9)", "ended with code -9"),
        ("raise RuntimeError('no such layer')", "ended with code 1: RuntimeError: no such layer"),
        ("import sys; open(sys.argv[-1], 'wb').write(b'PK')", "cannot be read"),
    ],
)
def test_a_worker_that_fails_is_an_error_not_a_verdict(
    instead: str, says: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrays(tmp_path / "abc-theirs.npz", {"run_id": np.asarray("xyz"), "loss": np.zeros(3)})
    popen = subprocess.Popen

    def start(command: list[str], **flags: Any) -> Any:
        return popen([sys.executable, "-c", instead, *command[1:]], **flags)

    monkeypatch.setattr("subprocess.Popen", start)
    workers = Workers("lit_mnist:LitMNIST", tmp_path, str(data_dir), lambda _: None)
    with pytest.raises(InputError, match=says):
        workers._run("trace", {"theirs": []}, "abc")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not a zip at all"])
def test_a_torn_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"in\.npz: cannot be read"):
        TraceInputs.read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": np.asarray("int3")}, "dtype is int3"),
        ({"batches": np.arange(6)}, r"batches is \(6,\)"),
        ({"batches": np.full((2, 3), -1)}, "row without an image"),
        ({"steps_per_epoch": np.asarray(0)}, "steps_per_epoch is 0"),
        ({"weights/conv/bias": np.zeros(7)}, "weights/conv/bias is float64"),
        ({"run_id": None}, "run_id is missing"),
    ],
)
def test_inputs_that_cannot_be_trained_on_are_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    weights = glorot_uniform(np.random.default_rng(0), "float32")
    good = TraceInputs("id", "float32", weights, np.zeros((2, 3), np.int64), 0.001, 1, np.array([0]))
    good.write(tmp_path / "in.npz")
    assert TraceInputs.read(tmp_path / "in.npz").epochs == 2
    arrays = {name: array for name, array in (good.arrays() | change).items() if array is not None}
    write_arrays(tmp_path / "in.npz", arrays)
    with pytest.raises(InputError, match=says):
        TraceInputs.read(tmp_path / "in.npz")


def test_the_command_exits_with_0_1_and_tells_where_to_look(command: Command, data_dir: Path) -> None:
    flags = ["--data_dir", data_dir, "--dtype", "float64", "--steps", 10]
    holds = command("-m", "keras_ref.parity", *flags, "--rungs", "[2,8]")
    assert (holds.returncode, holds.stderr) == (0, "")
    assert "was not run" in holds.stdout  # rung 11
    fails = command(
        "-m", "keras_ref.parity", *flags, "--rungs", "[8]", "--candidate", "mutants:NoEpsilonHat",
        PYTHONPATH=str(Path(__file__).parent),
    )  # fmt: skip
    assert (fails.returncode, fails.stderr) == (1, "")
    assert "rung 8 (optimizer, float64)" in fails.stdout
    assert "epsilon" in fails.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_6000_steps_of_the_documented_training_agree(command: Command, data_dir: Path) -> None:
    flags = ["--steps", 6_000, "--dtype", "float64", "--data_dir", data_dir]
    finished = command("-m", "keras_ref.parity", *flags, timeout=1700)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    assert finished.stdout.count(" holds  ") == 10
