"""The parity ladder: the port climbs it, and every mutant is stopped at the rung that was predicted for it."""

import multiprocessing
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import impostors
import numpy as np
import pytest
import torch
from commands import Forked, is_running
from conftest import Command

from keras_ref.parity import checks, processes
from keras_ref.parity.golden import SHIPPED
from keras_ref.parity.pitfalls import PITFALLS, climb_with_mutant, result_of
from keras_ref.parity.rungs import RUNGS, USUAL, Verdict, climb
from keras_ref.parity.samples import drawn_again, glorot_bound
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import DRAWN_AGAIN
from keras_ref.trace.trainings import glorot_uniform
from lit_mnist import KerasAdam, LitMNIST, MNISTDataModule, mutants
from lit_mnist.errors import InputError
from lit_mnist.layout import WEIGHTS
from lit_mnist.mutants import CORRECT
from lit_mnist.trace import requests
from lit_mnist.trace.candidate import Candidate
from lit_mnist.trace.files import Arrays, TraceInputs, write_arrays


def climb_to_the_end(sides: Sides) -> list[Verdict]:
    """Climb in float64, as the command does, up to the first rung that does not hold."""
    verdicts = []
    for verdict in climb(sides, USUAL, dtype="float64"):
        verdicts.append(verdict)
        if not verdict.holds:
            break
    return verdicts


@pytest.mark.parametrize(
    "candidate",
    [candidate if candidate is LitMNIST else pytest.param(candidate, marks=pytest.mark.slow) for candidate in CORRECT],
    ids=lambda candidate: candidate.__name__,
)
def test_a_correct_port_climbs_to_the_top(candidate: type[LitMNIST], sides: Sides) -> None:
    verdicts = climb_to_the_end(sides.of(f"{candidate.__module__}:{candidate.__name__}"))
    assert [verdict.rung.number for verdict in verdicts if verdict.holds] == list(range(1, 11))
    assert all(verdict.comparisons for verdict in verdicts)


@pytest.mark.parametrize("rung", USUAL)
def test_each_rung_stops_a_mutant(rung: int, sides: Sides) -> None:
    name = next(name for name, pitfall in PITFALLS.items() if pitfall.rung == rung)
    result = result_of(name, climb(sides.of(f"lit_mnist.mutants:{name}"), [rung], "float64"))
    assert result.as_predicted, result


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, pitfall in PITFALLS.items() if pitfall.rung in USUAL])
def test_every_mutant_is_stopped_first_at_its_rung(name: str, sides: Sides) -> None:
    result = climb_with_mutant(sides, name)
    assert result.as_predicted, result


@pytest.mark.slow
@pytest.mark.parametrize("rung", [12, 13])
def test_neither_several_devices_nor_a_crash_change_the_training(rung: int, sides: Sides) -> None:
    (verdict,) = climb(sides, [rung])
    assert verdict.holds, verdict.shown


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, pitfall in PITFALLS.items() if pitfall.rung > 11])
def test_what_changes_it_is_noticed(name: str, sides: Sides) -> None:
    result = climb_with_mutant(sides, name)
    assert result.as_predicted, result


def shuffled(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(60_000)


def chunks(size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(60_000).reshape(-1, size))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"order": [np.concatenate(chunks(8)), shuffled(1)]}, "neighbours"),
        ({"order": [shuffled(), shuffled(1), shuffled(1)]}, "another order in each epoch"),
        ({"documented_batch_sizes": np.full(469, 128)}, "batches of 100 images"),
    ],
)
def test_rung_1_knows_how_an_epoch_of_keras_looks(change: dict[str, Any], rule: str, keras_facts: Arrays) -> None:
    ours = {name: array for name, array in keras_facts.items() if "/" in name}
    ours |= {"order": [shuffled(), shuffled(1)], "images": np.array(60_000)}
    ours |= {"batch_sizes": np.full(600, 100), "documented_batch_sizes": np.full(600, 100)}
    assert all(one.holds for one in checks.data({**ours, "order": np.stack(ours["order"])}, keras_facts))
    ours |= change
    failed = [one.what for one in checks.data({**ours, "order": np.stack(ours["order"])}, keras_facts) if not one.holds]
    assert any(what.startswith(rule) for what in failed)


class DrawsAnew(LitMNIST):
    """Each device draws an order of its own."""

    class data_module(MNISTDataModule):  # noqa: N801
        def train_order(self, epoch: int) -> list[np.ndarray]:
            self.seed = int(np.random.default_rng().integers(2**32))
            return super().train_order(epoch)


@pytest.mark.parametrize(("candidate", "same"), [("lit_mnist:LitMNIST", True), ("test_parity:DrawsAnew", False)])
def test_rung_12_notices_devices_that_draw_an_order_each(candidate: str, same: bool, data_dir: Path) -> None:
    facts = requests.facts(lambda *_: None, candidate, "", "", "", str(data_dir), seeds=2)
    sides: Any = SimpleNamespace(facts=lambda: (facts, {}))
    assert next(checks.devices(sides, "float64")).holds == same


@pytest.mark.parametrize("shared", ["kernels", "units", "seeds", None])
def test_rung_3_notices_draws_that_come_again(shared: str | None) -> None:
    ours = {}
    for seed in (0, 1):
        rng = np.random.default_rng(0 if shared == "seeds" else seed)
        for key in ("conv/kernel", "hidden/kernel", "output/kernel"):
            shape = WEIGHTS[key]
            drawn = (np.random.default_rng(seed) if shared == "kernels" else rng).uniform(-1, 1, shape)
            if shared == "units":
                drawn[..., shape[-1] // 2 :] = drawn[..., : shape[-1] // 2]
            ours[f"initial/{seed}/{key}"] = (drawn * glorot_bound(shape)).astype(np.float32)
    shares = drawn_again(ours)
    assert len(shares) == 3
    assert (max(shares.values()) > DRAWN_AGAIN) == (shared is not None)


def test_every_rung_has_a_mutant_that_it_stops() -> None:
    assert {pitfall.rung for pitfall in PITFALLS.values()} == set(RUNGS)


def test_every_pitfall_has_its_mutant_and_every_mutant_its_pitfall() -> None:
    classes = {
        name for name, thing in vars(mutants).items() if isinstance(thing, type) and "lit_mnist.mutants" in str(thing)
    }
    bases, right = {"Optimizer", "Model", "Fused", "Data"}, {candidate.__name__ for candidate in CORRECT}
    assert classes - bases - right == set(PITFALLS)


def test_nan_and_missing_arrays_equal_nothing() -> None:
    good = {"loss": np.array([1.0, 2.0])}
    for ours in ({"loss": np.array([1.0, np.nan])}, {}, {"loss": np.array([1.0])}):
        (one,) = checks.loss(ours, good)
        assert not one.holds
    (one,) = checks.loss({"loss": np.array([np.nan])}, {"loss": np.array([np.nan])})
    assert not one.holds
    (one,) = checks.loss(good, good)
    assert one.holds


@pytest.mark.parametrize(("our_error", "holds"), [(1e-7, True), (1.9e-6, True), (2.1e-6, False), (np.nan, False)])
def test_in_float32_our_error_is_held_against_that_of_keras(our_error: float, holds: bool) -> None:
    exact = {"loss": np.array([1.0, 2.0, 0.5])}
    theirs = {"loss": exact["loss"] + np.array([0, 1e-6, 0])}
    ours = {"loss": exact["loss"] + np.array([0, 0, our_error])}
    (one,) = checks.loss(ours, theirs, exact)
    assert one.holds == holds


def test_the_largest_difference_is_named_by_its_place() -> None:
    theirs = {"loss": np.zeros((3, 4))}
    ours = {"loss": np.zeros((3, 4))}
    ours["loss"][2, 1] = 1e-3
    (one,) = checks.loss(ours, theirs)
    assert (one.what, one.difference) == ("loss[2, 1]", 1e-3)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ("no_such_module:Port", "--candidate no_such_module:Port"),
        ("lit_mnist:KerasAdam", "not a LightningModule"),
        ("lit_mnist", "expected package.module:Class"),
        (".relative:Port", "--candidate .relative:Port"),
    ],
)
def test_a_candidate_that_is_none_is_refused(candidate: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Candidate(candidate)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_a_candidate_that_cannot_be_run_is_an_error_not_a_verdict(command: Command) -> None:
    flags = ["--candidate", "no_such_module:Port", "--import_golden", SHIPPED, "--steps", 60]
    finished = command("-m", "keras_ref.parity", *flags)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert "--candidate no_such_module:Port" in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output", "none/out.npz"], "none/out.npz: there is no such directory"),
        (["--output", "out.npz", "--kill_after", "3"], "--kill_after 3: give the --checkpoint"),
        (["--output", "out.npz", "--kill_after", "3", "--checkpoint", ""], "--kill_after 3: give the --checkpoint"),
        (["--output", "."], "a directory; name a file"),
        (["--output", "out.npz", "--devices", "2", "--accelerator", "gpu"], "--accelerator gpu: several processes"),
        (["--output", "out.npz"], "in.npz: "),
    ],
)
def test_a_trace_that_cannot_be_made_is_refused_at_once(
    flags: list[str], says: str, command: Command, tmp_path: Path
) -> None:
    finished = command("-m", "lit_mnist.trace", "--inputs", "in.npz", *flags, cwd=tmp_path)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        (impostors.another_training, "trace of another training"),
        (impostors.torn, "cannot be read"),
        (impostors.killed, "ended with code -9"),
        (impostors.failing, "ended with code 1: RuntimeError: no such layer"),
        (impostors.silent, "ended with code 0: it said nothing"),
        (impostors.stuck, "nothing heard for 2 s"),
    ],
)
def test_a_process_that_fails_is_an_error_not_a_verdict(
    instead: Any, says: str, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "answer", instead)
    monkeypatch.setattr(processes, "SILENCE", 2)
    before = set(multiprocessing.active_children())
    weights = glorot_uniform(np.random.default_rng(0), "float32", WEIGHTS)
    inputs = TraceInputs("", "float32", weights, np.zeros((2, 3), np.int64), 0.001, 1, np.array([0]))
    with Sides("lit_mnist:LitMNIST", tmp_path, str(data_dir)) as sides, pytest.raises(InputError, match=says):
        sides.traces(inputs)
    assert set(multiprocessing.active_children()) <= before  # nobody stays behind


def test_a_batch_of_one_example_that_torch_refuses_is_explained() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value") as refused:
        torch.nn.BatchNorm1d(8)(torch.zeros(1, 8))
    text = processes.in_a_line(refused.value)
    assert text.startswith("ValueError: Expected more than 1 value per channel when training")
    assert "(test_parity.py, line " in text
    assert text.endswith("one example, which lit_mnist.porting.KerasBatchNorm takes as Keras does")


def test_what_is_wanted_later_is_done_meanwhile_and_its_failure_is_that_of_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "answer", impostors.obliging)
    with Sides("lit_mnist:LitMNIST", tmp_path, "data", processes=2) as sides:
        long, early, impossible = (sides.request("theirs", name) for name in ("long", "early", "impossible"))
        theirs = sides.answers["theirs"]
        sides.later += [(early, theirs), (impossible, theirs)]
        sides.ask([long])
        assert set(theirs) == {long, early}
        with pytest.raises(InputError, match="it is impossible"):
            sides.ask([impossible])


class Views(LitMNIST):
    """Gives arrays that share the memory of its parameters."""

    @staticmethod
    def to_keras(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def test_what_was_kept_does_not_change_with_the_next_step() -> None:
    candidate = Candidate("test_parity:Views")
    kept = candidate.arrays("weights")
    before = {key: array.copy() for key, array in kept.items()}
    with torch.no_grad():
        for parameter in candidate.parameters.values():
            parameter.add_(1)
    assert all(np.array_equal(kept[key], before[key]) for key in before)


def test_a_moment_that_is_missing_is_that_of_its_own_tensor() -> None:
    """An optimizer that was not given a bias keeps the moments of all others."""
    candidate = Candidate("lit_mnist:LitMNIST")
    held = [parameter for path, parameter in candidate.parameters.items() if not path.endswith("hidden.bias")]
    optimizer = KerasAdam(held)
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = candidate.state("", optimizer)
    assert [name for name, array in state.items() if np.isnan(array).any()] == [
        "adam_m/hidden/bias",
        "adam_v/hidden/bias",
    ]


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
        ({"batches": np.arange(6)}, r"batches is int64 \(6,\)"),
        ({"batches": np.zeros((2, 3))}, "batches is float64"),
        ({"batches": np.array([[0, -1, 2], [0, 1, 2]])}, "at the end of a row"),
        ({"batches": np.full((2, 3), 1) * [1, 1, -5]}, "at the end of a row"),
        ({"record_at": np.array([2])}, "record_at names a step"),
        ({"record_at": np.array(0)}, "record_at is int64"),
        ({"learning_rate": np.asarray(np.nan)}, "learning_rate is nan"),
        ({"learning_rate": np.asarray("fast")}, "could not convert"),
        ({"steps_per_epoch": np.array([1, 2])}, "describes what is expected"),
        ({"batches": np.full((2, 3), -1)}, "row without an image"),
        ({"steps_per_epoch": np.asarray(0)}, "steps_per_epoch is 0"),
        ({"steps_per_epoch": np.asarray(1.5)}, "expected a whole number"),
        ({"steps_per_epoch": np.asarray(np.inf)}, "describes what is expected"),
        ({"weights/conv/bias": np.zeros(7)}, "weights/conv/bias is float64"),
        ({"run_id": None}, "run_id is missing"),
    ],
)
def test_inputs_that_cannot_be_trained_on_are_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    weights = glorot_uniform(np.random.default_rng(0), "float32", WEIGHTS)
    good = TraceInputs("id", "float32", weights, np.zeros((2, 3), np.int64), 0.001, 1, np.array([0]))
    write_arrays(tmp_path / "in.npz", good.arrays())
    assert TraceInputs.read(tmp_path / "in.npz").epochs == 2
    arrays = {name: array for name, array in (good.arrays() | change).items() if array is not None}
    write_arrays(tmp_path / "in.npz", arrays)
    with pytest.raises(InputError, match=says):
        TraceInputs.read(tmp_path / "in.npz")


def test_the_command_exits_with_1_and_says_where_to_look(command: Command) -> None:
    flags = ["--rungs", "[8]", "--candidate", "lit_mnist.mutants:NoEpsilonHat", "--dtype", "float64"]
    finished = command("-m", "keras_ref.parity", *flags, "--import_golden", SHIPPED, "--steps", 60)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert "rung 8 (optimizer, float64)" in finished.stdout
    assert "epsilon" in finished.stdout


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_ladder_that_is_interrupted_leaves_nothing_behind(
    signum: int, code: int, tmp_path: Path, data_dir: Path
) -> None:
    process = Forked(["keras_ref.parity", "--data_dir", str(data_dir)], TMPDIR=str(tmp_path))
    while process.poll() is None and not list(tmp_path.glob("parity-*/theirs-0.log")):
        time.sleep(0.05)
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2  # and Python's own, which looks after them
    process.send_signal(signum)
    finished = process.finish(30)
    assert (finished.returncode, finished.stderr) == (code, "")
    time.sleep(0.5)
    assert not [pid for pid in children if is_running(int(pid))]
    assert not list(tmp_path.glob("parity-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_6000_steps_of_the_documented_training_agree(command: Command, data_dir: Path) -> None:
    flags = ["--steps", 6_000, "--dtype", "float64", "--data_dir", data_dir]
    finished = command("-m", "keras_ref.parity", *flags, timeout=1700)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stdout
    assert finished.stdout.count(" holds  ") == 10
    assert "Rung 11 (distribution) was not run" in finished.stdout
