"""Several devices: torchrun's agent starts a process for each, watches them and ends all if one is lost.

Under torchrun itself or SLURM the processes are there already, and each trains at once.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_mnist.errors import InputError
from lit_mnist.runs.signals import StoppedError

ROLE = "lit_mnist"  # torchrun's name for what the processes do, in ROLE_NAME: tells those that we started from others
PARENT = "LIT_MNIST_PARENT"  # environment variable: the process that started this one
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # variables of each of its processes
SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


def run_on_devices(
    command: Sequence[str], devices: int, num_nodes: int, timeout: float, resume: Callable[[], str] = lambda: ""
) -> None:
    """Run `python COMMAND` once for each device, and wait until all of them have ended.

    On several nodes, MASTER_ADDR and MASTER_PORT say where they meet and NODE_RANK which one this is.

    Args:
        command: arguments of Python; each process knows from its environment which of them it is.
        devices: number of processes on this node.
        num_nodes: number of nodes.
        timeout: seconds that the nodes wait for one another.
        resume: returns how to resume, for the end of each message.

    Raises:
        InputError: if a process says so, or it is not known where the nodes meet.
        OSError: if a process fails or is lost; the others are ended.
        StoppedError: if a signal ends them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost"}
    waiting: dict[str, Any] = {"timeout": int(timeout)}
    if num_nodes > 1:
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise InputError(
                f"--num_nodes {num_nodes}: start it with torchrun on each, or set MASTER_ADDR, MASTER_PORT, NODE_RANK"
            )
        endpoint = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": endpoint}
        waiting |= {"rank": int(os.environ.get("NODE_RANK", "0"))}
    os.environ[PARENT] = str(os.getpid())
    logging.disable(logging.ERROR)  # the agent's; what matters is in its exceptions
    try:
        with tempfile.TemporaryDirectory(prefix="lit_mnist-") as directory:
            config = LaunchConfig(
                min_nodes=num_nodes,
                max_nodes=num_nodes,
                nproc_per_node=devices,
                run_id=ROLE,
                role=ROLE,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=directory),  # and the files in which they tell of errors
                rdzv_configs=waiting,
                **meeting,
            )
            elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        raise StoppedError(error.sigval, resume()) from None
    except ChildFailedError as error:
        raise _failure(error.failures, resume()) from None
    except (RuntimeError, OSError) as error:  # the nodes did not meet
        reason = str(error).partition("\n")[0]
        raise ConnectionError(f"the processes of {num_nodes} nodes did not meet ({reason})") from None
    finally:
        logging.disable(logging.NOTSET)


def _failure(failures: Mapping[int, Any], resume: str) -> Exception:
    """Return what the failure of some processes, in the order in which they ended, means for all."""
    ended = {-signal.SIGTERM, *(128 + signum for signum in (signal.SIGTERM, signal.SIGINT))}  # by a signal
    said = {rank: _said(one) for rank, one in failures.items()}
    own = {rank: one for rank, one in failures.items() if one.exitcode not in ended or said[rank]}
    if own and next(iter(own.values())).exitcode > 0:  # then the agent has ended those that did not end by themselves
        own = {rank: one for rank, one in own.items() if one.exitcode > 0 or said[rank]}
    if not own:  # a signal that one of them got, or all
        return StoppedError(abs(next(iter(failures.values())).exitcode) % 128, resume)
    reasons = [f"process {rank}: {said[rank] or f'ended with code {one.exitcode}'}" for rank, one in own.items()]
    line = "; ".join(reasons)
    if all(one.exitcode == 2 for one in own.values()):
        return InputError(line)
    return ConnectionError(f"{line}. {resume}".rstrip())


def _said(failure: Any) -> str:
    """Return the first line of the error that a process left word of; the agent may have ended it afterwards."""
    if isinstance(failure.message, str):  # of the agent
        return ""
    line = failure.message["message"].partition("\n")[0]
    return "" if line.startswith(StoppedError.__name__) else line.removeprefix(f"{InputError.__name__}: ")


def started_by_us() -> bool:
    """Say whether this process is one of those that `run_on_devices` has started."""
    return os.environ.get("ROLE_NAME") == ROLE and PARENT in os.environ


def started_by_agent() -> bool:
    """Say whether torchrun or SLURM has started this process, and others beside it."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def exit_with_parent() -> None:
    """See to it that a process of several does not outlive the one that started it, which can be killed."""

    def watch() -> None:
        while str(os.getppid()) == os.environ[PARENT]:
            time.sleep(1)
        os._exit(1)

    if started_by_us():
        threading.Thread(target=watch, daemon=True, name="parent").start()


def tell_parent(error: Exception) -> bool:
    """Leave word of an error with torchrun's agent; return whether that is ours, which then tells the user."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with contextlib.suppress(OSError):  # the file is named by a variable that anybody may have set
            get_error_handler().record_exception(error)
    return started_by_us()


def check_environment() -> None:
    """Make sure that what tells processes of one another is readable, whoever has set it.

    Raises:
        InputError: names the first variable that is not a number, or is missing beside the others of torchrun.
    """
    for name in (*TORCHRUN, "NODE_RANK", "GROUP_RANK", "MASTER_PORT", *SLURM):
        least = 1 if name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS") else 0
        limit = 65_535 if name == "MASTER_PORT" else 10**6
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdecimal() and len(value) < 9 and least <= int(value) <= limit):
            raise InputError(
                f"{name}={value[:100]!r} in the environment: expected a number from {least} to {limit}; unset it"
            )
    for name in TORCHRUN:
        if "TORCHELASTIC_RUN_ID" in os.environ and name not in os.environ:
            raise InputError(f"{name} is not in the environment, but TORCHELASTIC_RUN_ID is; start it with torchrun")


def check_processes(devices: int, num_nodes: int) -> None:
    """Make sure that all processes that were started will train together, and not each on its own.

    Raises:
        InputError: if torchrun or SLURM has started more or fewer, or this is said to be of a machine too many.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        try:
            started = environment().world_size() if environment.detect() else devices * num_nodes
        except RuntimeError as error:  # of SLURM's variables without srun
            raise InputError(str(error)) from error
        if started != devices * num_nodes:
            raise InputError(
                f"--devices {devices} --num_nodes {num_nodes}: {devices * num_nodes} processes, but {started} were "
                "started; --devices times --num_nodes must be as many"
            )
    if not started_by_agent() and (rank := int(os.environ.get("NODE_RANK", "0"))) >= num_nodes:
        raise InputError(f"NODE_RANK={rank} in the environment: expected less than --num_nodes")
