"""Several devices train and count as one does, however they are started, and end in bounded time when one is lost."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Flags, Training, checkpoints, is_running
from conftest import results
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lit_mnist.errors import InputError
from lit_mnist.runs.processes import ROLE, _failure
from lit_mnist.runs.signals import StoppedError

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))


@pytest.fixture(scope="module")
def flags(data_dir: Path) -> Flags:
    """A training of a few steps in 64 bits. 59,976 images in batches of 84: each divides among 2, 3, 4 and 7."""
    return {
        "accelerator": "cpu",
        "precision": "64-true",
        "batch_size": 84,
        "validation_images": 24,
        "max_epochs": 2,
        "limit_train_batches": 12,
        "data_dir": data_dir,
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, flags: Flags) -> Path:
    """The run on one device."""
    process = Training(flags | {"output_dir": tmp_path_factory.mktemp("one"), "run_name": "run"})
    assert process.finish() == (0, "")
    return process.run


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def assert_same_results(run: Path, one: Path) -> None:
    found = results(run)
    assert found == pytest.approx(results(one), rel=1e-13)
    counted = [name for name in found if "accuracy" in name]
    assert len(counted) == 5  # of training and validation, an epoch each, and of the test
    assert {name: found[name] for name in counted} == {name: results(one)[name] for name in counted}


def wait_for_children(training: Training) -> list[int]:
    """Return the processes that were started to train, one a device."""
    while training.process.poll() is None:
        children = [pid for pid in training.children() if trains(pid)]
        if len(children) == 2:
            return children
        time.sleep(0.01)
    raise AssertionError(training.finish())


def trains(pid: int) -> bool:
    try:
        return f"ROLE_NAME={ROLE}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pids: list[int]) -> bool:
    """Whether all of them end within some seconds: each looks once a second whether it is still wanted."""
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(is_running, pids))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3, 4, 7])
def test_every_metric_is_the_same_on_any_number_of_devices(
    devices: int, flags: Flags, one: Path, tmp_path: Path
) -> None:
    process = Training(flags | {"devices": devices, "output_dir": tmp_path, "run_name": "run"})
    code, stdout, stderr = process.outputs()
    assert (code, stderr) == (0, "")
    assert [stdout.count(line) for line in ("152,006", "Epoch  1/2", "Epoch  2/2", "Results:")] == [1, 1, 1, 1]
    assert_same_results(tmp_path / "run", one)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step=00012.ckpt", "step=00024.ckpt"]


@pytest.mark.slow
def test_torchrun_starts_them_too(flags: Flags, one: Path, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run"}  # without --devices: torchrun has said it
    process = Training(flags, TORCHRUN, "--master_port", str(free_port()), "--nproc_per_node", "2")
    assert process.finish() == (0, "")
    assert_same_results(tmp_path / "run", one)


AT_EXIT = """
import contextlib, os, pathlib

end = os._exit

def tell_and_end(code):
    names = []
    for thread in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.append((thread / "comm").read_text().strip())
    pathlib.Path(os.environ["THREADS"], str(os.getpid())).write_text(" ".join(names))
    end(code)

os._exit = tell_and_end
"""


@pytest.mark.slow
def test_no_thread_of_gloo_is_left_when_the_interpreter_ends(flags: Flags, tmp_path: Path) -> None:
    """One that gives back a tensor while Python is taken down would abort its process, as happens now and then."""
    (tmp_path / "sitecustomize.py").write_text(AT_EXIT)
    (tmp_path / "threads").mkdir()
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "fast_dev_run": "true"}
    process = Training(flags, PYTHONPATH=str(tmp_path), THREADS=str(tmp_path / "threads"))
    assert process.finish() == (0, "")
    threads = [path.read_text() for path in (tmp_path / "threads").iterdir()]
    assert len(threads) == 3  # of the two, and of the one that started them
    assert not [names for names in threads if "gloo" in names]


@pytest.mark.slow
def test_they_train_together_or_not_at_all(flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 1}
    process = Training(flags, TORCHRUN, "--master_port", str(free_port()), "--nproc_per_node", "2")
    code, stderr = process.finish()
    assert code == 1  # torchrun's
    assert "--devices 1 --num_nodes 1: 1 processes, but 2 were started" in stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_nodes_train_as_one_device(flags: Flags, one: Path, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "num_nodes": 2}
    place = ["--nnodes", "2", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    nodes = [Training(flags, TORCHRUN, "--node_rank", str(rank), *place) for rank in range(2)]
    assert [node.finish() for node in nodes] == [(0, ""), (0, "")]
    assert_same_results(tmp_path / "run", one)


@pytest.mark.slow
def test_under_slurm_each_task_is_a_process(flags: Flags, one: Path, tmp_path: Path) -> None:
    """Without SLURM: what srun sets for two tasks on a machine."""
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2}
    slurm = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "JOB_ID": os.getpid(), "JOB_NAME": "train", "NODEID": 0}
    slurm |= {"NODELIST": "127.0.0.1", "JOB_NODELIST": "127.0.0.1"}
    names = {f"SLURM_{name}": str(value) for name, value in slurm.items()} | {"MASTER_PORT": str(free_port())}
    tasks = [Training(flags, **names, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
    assert [task.finish() for task in tasks] == [(0, ""), (0, "")]
    assert_same_results(tmp_path / "run", one)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["all others", "one"])
def test_a_process_that_dies_ends_the_others_and_the_run_can_be_resumed(
    lost: str, flags: Flags, one: Path, tmp_path: Path
) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2}
    process = Training(flags | {"max_epochs": 500})
    process.wait_for_step(12)
    children = wait_for_children(process)
    os.kill(children[1] if lost == "one" else process.process.pid, signal.SIGKILL)
    code, stderr = process.finish()
    if lost == "one":
        line = stderr.splitlines()[-1]
        assert code == 1
        assert line.startswith("python -m lit_mnist.train: error: process 1: ended with code -9")
        assert line.endswith("--run_name run --resume last")
    else:
        assert (code, stderr) == (-signal.SIGKILL, "")
    assert ended(children)
    for path in checkpoints(tmp_path / "run")[1:]:
        path.unlink()
    assert Training(flags | {"resume": "last"}).finish() == (0, "")
    assert_same_results(tmp_path / "run", one)


@pytest.mark.slow
def test_a_process_that_dies_at_its_start_is_reported_too(flags: Flags, tmp_path: Path) -> None:
    process = Training(flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2})
    children = wait_for_children(process)
    os.kill(children[1], signal.SIGKILL)
    code, stderr = process.finish()
    (line,) = stderr.splitlines()
    assert code == 1
    assert "process 1: ended with code -9" in line
    assert ended(children)


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_no_longer_than_asked(flags: Flags, tmp_path: Path) -> None:
    process = Training(flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "timeout": 4})
    process.wait_for_step(24)  # the end of the training: the test is next
    children = wait_for_children(process)
    os.kill(children[1], signal.SIGSTOP)
    code, stderr = process.finish()
    (line,) = stderr.splitlines()
    assert code == 1
    assert "Timed out waiting 4000ms" in line
    assert line.endswith("--run_name run --resume last")
    assert ended(children)


@pytest.mark.slow
def test_a_port_that_is_taken_is_an_error(port: int, flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "num_nodes": 2}
    code, stderr = Training(flags, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0").finish()
    (line,) = stderr.splitlines()
    assert code == 1
    assert f"port: {port}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_node_that_waits_for_the_other_in_vain_ends(rank: str, flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "num_nodes": 2, "timeout": 3}
    process = Training(flags, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), NODE_RANK=rank)
    code, stderr = process.finish()
    assert code == 1
    assert stderr.splitlines()[-1].startswith("python -m lit_mnist.train: error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_a_signal_ends_the_waiting(signum: int, code: int, flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "num_nodes": 2}
    process = Training(flags, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), NODE_RANK="0")
    time.sleep(4)
    process.process.send_signal(signum)
    returncode, stderr = process.finish()
    assert returncode == code
    assert len(stderr.splitlines()) <= 1


@pytest.mark.parametrize(
    ("failures", "kind", "says"),
    [
        # The second noticed that the first was gone, and ended before it; the first was ended by the agent on its way.
        (
            {1: (1, "RuntimeError: closed by peer"), 0: (-15, "OSError: disk full")},
            ConnectionError,
            "process 0: OSError",
        ),
        ({0: (2, "InputError: no such file"), 1: (-15, "")}, InputError, "^process 0: no such file$"),
        ({0: (2, "InputError: a"), 1: (2, "InputError: a")}, InputError, "^process 0: a; process 1: a$"),
        ({1: (-9, ""), 0: (-15, "")}, ConnectionError, "^process 1: ended with code -9. To resume$"),
        ({1: (1, ""), 0: (-9, "")}, ConnectionError, "^process 1: ended with code 1. To resume$"),
        ({0: (143, "StoppedError: "), 1: (-15, "")}, StoppedError, "^To resume$"),
        ({0: (130, "StoppedError: "), 1: (143, "StoppedError: ")}, StoppedError, "^To resume$"),
    ],
)
def test_what_the_end_of_some_processes_means_for_all(
    failures: dict[int, tuple[int, str]], kind: type[Exception], says: str, tmp_path: Path
) -> None:
    ended = {}
    for rank, (code, message) in failures.items():
        word = tmp_path / f"{rank}.json"
        if message:
            word.write_text(json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "1"}}}))
        ended[rank] = ProcessFailure(rank, pid=1, exitcode=code, error_file=str(word))
    error = _failure(ended, "To resume")
    assert type(error) is kind
    assert re.search(says, str(error))


@pytest.mark.slow
def test_a_full_disk_ends_all_devices_in_one_line(flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2}
    process = Training(flags, "bash", "-c", 'ulimit -f 900; exec "$0" "$@"', sys.executable)  # less than one takes
    children = wait_for_children(process)
    code, stderr = process.finish()
    (line,) = stderr.splitlines()
    assert code == 1
    assert re.search(r"error: .*File too large: '.*step=00012.ckpt'", line)
    assert ended(children)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_nodes_that_do_not_know_where_to_meet_are_refused(flags: Flags, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run", "devices": 2, "num_nodes": 2}
    code, stderr = Training(flags).finish()
    assert code == 2
    assert "--num_nodes 2: start it with torchrun on each, or set MASTER_ADDR" in stderr


def test_of_two_runs_that_start_at_once_one_wins(flags: Flags, one: Path, tmp_path: Path) -> None:
    flags = flags | {"output_dir": tmp_path, "run_name": "run"}
    pair = [Training(flags), Training(flags)]
    won, (code, stderr) = sorted(process.finish() for process in pair)
    assert won == (0, "")
    (line,) = stderr.splitlines()
    assert code == 2
    assert re.search("run: (exists already|another process is training)", line)
    assert_same_results(tmp_path / "run", one)
