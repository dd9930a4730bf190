"""Damaged at random: data files, configs, checkpoints. Each is refused in one line or used as it is; no traceback."""

import contextlib
import functools
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from keras_ref.data import load_data
from lit_mnist.errors import InputError
from lit_mnist.mnist_files import MD5, read_files
from lit_mnist.runs.checkpoints import read_checkpoint
from lit_mnist.runs.command import run
from lit_mnist.train import train

CASES = [200, pytest.param(2000, marks=pytest.mark.slow)]
IMAGES = {"train": 60, "t10k": 20}


def damaged(content: bytes, draw: random.Random, header: int) -> bytes:
    """Cut, lengthen or change a file, most often in its first bytes."""
    data = bytearray(content)
    kind = draw.random()
    if kind < 0.2:
        del data[draw.randrange(len(data)) :]
    elif kind < 0.3:
        data += draw.randbytes(draw.choice([1, 100, 5000]))
    else:
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(min(header, len(data))) if draw.random() < 0.7 else draw.randrange(len(data))
            data[place] = draw.choice([0, 255, data[place] ^ 1 << draw.randrange(8), draw.randrange(256)])
    return bytes(data)


def outcome(attempt: Callable[[], Any]) -> Any:
    """What an attempt returned, or None if it was refused in one line."""
    try:
        return attempt()
    except InputError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    return None


@pytest.mark.parametrize("cases", CASES)
def test_data_files(cases: int, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    whole = {}
    for name in MD5:
        count = IMAGES[name.partition("-")[0]]
        shape = (count, 28, 28) if "images" in name else (count,)
        body = np.random.default_rng(0).integers(0, 10, shape, np.uint8).tobytes()
        lengths = b"".join(length.to_bytes(4, "big") for length in shape)
        whole[name] = bytes([0, 0, 8, len(shape)]) + lengths + body
    draw = random.Random(cases)
    used = 0
    for _ in range(cases):
        files = dict(whole)
        for name in draw.sample(sorted(whole), draw.choice([1, 1, 2])):
            files[name] = damaged(draw.choice([whole[name]] * 4 + [*whole.values()]), draw, header=16)
        for name, content in files.items():
            (raw / name).write_bytes(content)
        ours = outcome(lambda: read_files(tmp_path, verify=False))
        theirs = outcome(lambda: load_data(tmp_path, verify=False))
        assert (ours is None) == (theirs is None)
        assert {path.name: path.read_bytes() for path in raw.iterdir()} == files
        if ours is not None:
            used += 1
            our_arrays = [x.numpy() for split in (ours.train, ours.test) for x in split.tensors]
            np.testing.assert_array_equal(our_arrays[0][:, 0], theirs.train_images)
            np.testing.assert_array_equal(our_arrays[1], theirs.train_labels)
            np.testing.assert_array_equal(our_arrays[2][:, 0], theirs.test_images)
            np.testing.assert_array_equal(our_arrays[3], theirs.test_labels)
    assert 0 < used < 0.7 * cases


@pytest.mark.parametrize("cases", CASES)
def test_configs(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    given: list[dict[str, Any]] = []

    @functools.wraps(train)
    def take(**flags: Any) -> None:
        given.append(flags)

    monkeypatch.setattr(sys, "argv", ["train", "--config", str(tmp_path / "config.yaml")])
    flags = {"seed": 1, "batch_size": 100, "learning_rate": 0.001, "devices": "auto", "resume": None, "run_name": "x"}
    junk = [None, True, -1, 0, 2**70, 1e400, float("nan"), "", "x", [], [1], {"a": 1}, "!!python/name:os.system"]
    draw = random.Random(cases)
    used = 0
    for _ in range(cases):
        config = dict(flags)
        if draw.random() < 0.5:
            config[draw.choice([*flags, "no_such_flag"])] = draw.choice(junk)
        content = yaml.safe_dump(config).encode()
        (tmp_path / "config.yaml").write_bytes(damaged(content, draw, len(content)) if draw.random() < 0.7 else content)
        before = len(given)
        with contextlib.suppress(SystemExit):
            run(take, prog="train")
        streams = capsys.readouterr()
        if len(given) > before:
            used += 1
            assert streams.err == ""
            assert 0 <= given[-1]["seed"] < 2**32
            assert given[-1]["batch_size"] > 0
        else:
            (line,) = streams.err.splitlines()
            assert line.startswith("train: error: ")
    assert 0 < used < 0.7 * cases


@pytest.mark.parametrize("cases", CASES)
def test_checkpoints(cases: int, tmp_path: Path, data_dir: Path) -> None:
    flags: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 4, "data_dir": str(data_dir)}
    train(**flags, checkpoint_every_n_steps=2, output_dir=str(tmp_path), run_name="run")
    good = tmp_path / "run" / "checkpoints" / "step=00002.ckpt"
    settings = torch.load(good, weights_only=True)["callbacks"]["Checkpoints"]["settings"]
    whole = good.read_bytes()
    path = tmp_path / "step=00002.ckpt"
    shutil.copy(good, path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    pickled = whole.index(b"PK\x01\x02") - 1  # from here on, the directory of the archive
    draw = random.Random(cases)
    used = 0
    for case in range(cases):
        data = damaged(whole, draw, header=6000)
        if case % 3 == 0:
            data = whole[:pickled] + damaged(whole[pickled:], draw, header=2000)
        path.write_bytes(data)
        step = outcome(lambda: read_checkpoint(path, settings, 1))
        assert path.read_bytes() == data
        if step is not None:
            used += 1
            assert step == 2
            for name, tensor in torch.load(path, weights_only=True)["state_dict"].items():
                assert torch.equal(tensor, weights[name])
    assert 0 < used < 0.5 * cases
