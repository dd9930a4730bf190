"""The MNIST files, and the batches made of them."""

import gzip
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import Subset, TensorDataset
from trainers import make_trainer

from keras_ref.data import load_data
from lit_mnist import LitMNIST, MNISTDataModule
from lit_mnist.data import Batches, InOrder, ResumableLoader, cut, on_device, scale_pixels, stratified_sample
from lit_mnist.errors import InputError
from lit_mnist.mnist_files import MD5, read_files

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MD5
SIDES = {"ours": read_files, "theirs": load_data}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A data directory's `MNIST/raw`, empty."""
    path = tmp_path / "MNIST" / "raw"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def filled_raw(raw: Path, data_dir: Path) -> Path:
    """The same with the four unpacked files and no packed ones."""
    for name in MD5:
        shutil.copy(data_dir / "MNIST" / "raw" / name, raw / name)
    return raw


def contents(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


# What both frameworks are given


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_that_torchvision_reads(split: str, data_dir: Path) -> None:
    theirs = torchvision.datasets.MNIST(str(data_dir), train=split == "train")
    images, labels = getattr(read_files(data_dir), split).tensors
    assert torch.equal(images[:, 0], theirs.data)
    assert torch.equal(labels, theirs.targets)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_both_sides_report_the_same_digest(data_dir: Path) -> None:
    assert read_files(data_dir).sha256 == load_data(data_dir).sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_byte_is_divided_by_255_and_rounded_once(dtype: torch.dtype) -> None:
    real = np.float32 if dtype == torch.float32 else np.float64
    ours = scale_pixels(torch.arange(256, dtype=torch.uint8), dtype).numpy()
    np.testing.assert_array_equal(ours, np.arange(256).astype(real) / real(255))
    assert (ours != np.arange(256).astype(real) * (real(1) / real(255))).any()  # what CUDA would do with a number


# Files


@pytest.mark.parametrize("present", [[], [TEST_IMAGES, f"{TRAIN_LABELS}.gz"]])
@pytest.mark.parametrize("side", SIDES)
def test_missing_files_come_from_the_package_and_nothing_is_written(
    side: str, present: list[str], raw: Path, data_dir: Path
) -> None:
    for name in present:
        content = (data_dir / "MNIST" / "raw" / name.removesuffix(".gz")).read_bytes()
        (raw / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    before = contents(raw.parent.parent)
    assert SIDES[side](raw.parent.parent).sha256 == load_data().sha256
    assert contents(raw.parent.parent) == before


@pytest.mark.parametrize("side", SIDES)
def test_a_directory_that_is_not_there_is_not_made(side: str, tmp_path: Path) -> None:
    SIDES[side](tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_broken_link_is_named_not_replaced(filled_raw: Path) -> None:
    link = filled_raw / TEST_LABELS
    link.unlink()
    link.symlink_to("elsewhere")
    with pytest.raises(InputError, match=f"{TEST_LABELS}: cannot be read .*No such file"):
        read_files(filled_raw.parent.parent)
    assert link.is_symlink()


@pytest.mark.parametrize("side", SIDES)
def test_what_is_no_file_is_named_and_not_waited_for(side: str, filled_raw: Path) -> None:
    pipe = filled_raw / TEST_LABELS
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=rf"{TEST_LABELS}: cannot be read \(not a file\)"):
        SIDES[side](filled_raw.parent.parent)


@pytest.mark.parametrize("side", SIDES)
def test_a_file_in_place_of_the_directory_is_named(side: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"data_dir='{tmp_path / 'file'}'"):
        SIDES[side](tmp_path / "file")


def idx(magic: int, *lengths: int, body: bytes | None = None) -> bytes:
    return struct.pack(f">{1 + len(lengths)}I", magic, *lengths) + (bytes(np.prod(lengths)) if body is None else body)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda raw: (raw / name).write_bytes(content) and None


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda raw: write(name, (raw / name).read_bytes()[:size])(raw)


def change_a_byte(name: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        content = bytearray((raw / name).read_bytes())
        content[100] ^= 1
        (raw / name).write_bytes(content)

    return change


def swap(one: str, other: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        contents = (raw / one).read_bytes(), (raw / other).read_bytes()
        (raw / other).write_bytes(contents[0])
        (raw / one).write_bytes(contents[1])

    return change


empty_images = write(TEST_IMAGES, idx(2051, 0, 28, 28))
DAMAGE = {
    "empty": (write(TRAIN_IMAGES, b""), TRAIN_IMAGES),
    "header only": (truncate(TRAIN_LABELS, 8), TRAIN_LABELS),
    "half a header": (truncate(TEST_LABELS, 6), TEST_LABELS),
    "truncated": (truncate(TRAIN_IMAGES, 1_000_000), TRAIN_IMAGES),
    "one byte too many": (write(TEST_LABELS, idx(2049, 10_000, body=bytes(10_001))), TEST_LABELS),
    "wrong magic": (write(TEST_LABELS, idx(2050, 10_000)), TEST_LABELS),
    "images for labels": (swap(TEST_IMAGES, TEST_LABELS), TEST_IMAGES),
    "the other split's labels": (swap(TRAIN_LABELS, TEST_LABELS), TRAIN_LABELS),
    "another shape": (write(TEST_IMAGES, idx(2051, 10_000, 32, 32)), TEST_IMAGES),
    "no image": (lambda raw: [empty_images(raw), write(TEST_LABELS, idx(2049, 0))(raw)], "t10k"),
    "label 10": (write(TEST_LABELS, idx(2049, 10_000, body=bytes(9_999) + b"\x0a")), TEST_LABELS),
    "a huge declared size": (write(TEST_IMAGES, idx(2051, 2**32 - 1, 2**32 - 1, 2**32 - 1, body=b"")), TEST_IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage: str, side: str, verify: bool, filled_raw: Path) -> None:
    change, culprit = DAMAGE[damage]
    change(filled_raw)
    with pytest.raises(InputError, match=culprit) as error:
        SIDES[side](filled_raw.parent.parent, verify)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", MD5)
def test_another_data_set_needs_verify_data_false(name: str, side: str, filled_raw: Path) -> None:
    change_a_byte(name)(filled_raw)
    with pytest.raises(InputError, match=rf"{name}: .*verify_data false"):
        SIDES[side](filled_raw.parent.parent, True)
    SIDES[side](filled_raw.parent.parent, False)


@pytest.mark.parametrize("side", SIDES)
def test_files_of_two_data_sets_are_not_mixed(side: str, filled_raw: Path) -> None:
    (filled_raw / TRAIN_LABELS).unlink()
    with pytest.raises(InputError, match=f"{TRAIN_LABELS}: missing"):
        SIDES[side](filled_raw.parent.parent, False)


@pytest.mark.parametrize("side", SIDES)
def test_mnist_is_not_put_in_the_place_of_another_data_set(side: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{TRAIN_IMAGES}: missing"):
        SIDES[side](tmp_path / "mistyped", False)


@pytest.mark.parametrize("side", SIDES)
def test_a_packed_file_that_unpacks_to_far_too_much_is_not_unpacked(
    side: str, filled_raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lit_mnist.mnist_files", "keras_ref.data"):
        monkeypatch.setattr(f"{module}.LARGEST_FILE", 50_000_000)
    (filled_raw / TEST_IMAGES).unlink()
    (filled_raw / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(2051, 10_000, 28, 28) + bytes(60_000_000)))
    with pytest.raises(InputError, match=f"{TEST_IMAGES}.gz: .*more than 50,000,000 bytes"):
        SIDES[side](filled_raw.parent.parent, False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "torn", [b"", b"not gzip", gzip.compress(bytes(10_000), mtime=0)[:-9]], ids=["empty", "other", "cut"]
)
def test_a_torn_packed_file_is_named_and_leaves_nothing(torn: bytes, verify: bool, side: str, raw: Path) -> None:
    packed = raw / f"{TRAIN_IMAGES}.gz"
    packed.write_bytes(torn)
    with pytest.raises(InputError, match=TRAIN_IMAGES):
        SIDES[side](raw.parent.parent, verify)
    assert list(raw.iterdir()) == [packed]
    assert packed.read_bytes() == torn


# Batches


@pytest.mark.parametrize(("count", "batch_size"), [(1000, 100), (1003, 100), (7, 100)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_devices_together_see_each_batch_of_one_device(count: int, batch_size: int, world_size: int) -> None:
    indices = np.arange(5000, 5000 + count)

    def order(epoch: int) -> list[np.ndarray]:
        return cut(np.random.default_rng(epoch).permutation(indices), batch_size)

    dataset = TensorDataset(torch.empty(0))
    alone = Batches(dataset, order).indices
    shares = [Batches(dataset, order, rank, world_size).indices for rank in range(world_size)]
    together = list(zip(*shares, strict=True))
    assert len(together) == len(alone) == -(-count // batch_size)
    for batch, parts in zip(alone, together, strict=True):
        assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
    assert sorted(torch.cat(list(alone)).tolist()) == indices.tolist()


def test_images_go_to_a_gpu_only_if_they_take_at_most_half_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = TensorDataset(torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64))
    assert on_device(dataset, torch.device("cpu")) is dataset
    size = 10 * (28 * 28 + 8)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2 * size - 1, 10 * size))
    assert on_device(dataset, torch.device("cuda")) is dataset
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2 * size, 10 * size))
    monkeypatch.setattr("torch.Tensor.to", lambda tensor, device: tensor + device.type.count("cuda"))  # there is none
    assert all(tensor.all() for tensor in on_device(dataset, torch.device("cuda")).tensors)


def test_indices_are_made_where_the_images_are() -> None:
    batches = Batches(TensorDataset(torch.empty(10, device="meta")), lambda epoch: cut(np.arange(10), 3))
    assert [batch.device.type for batch in batches.indices] == ["meta"] * 4


def test_the_order_is_a_pure_function_of_seed_and_epoch(data_dir: Path) -> None:
    def orders(seed: int, *epochs: int) -> list[bytes]:
        data = MNISTDataModule(data_dir, validation_images=59_000, seed=seed)
        data.setup()
        return [np.concatenate(data.train_order(epoch)).tobytes() for epoch in epochs]

    found = [orders(seed, 0, 1, 2) for seed in range(3)]
    assert len({order for of_seed in found for order in of_seed}) == 9
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002  # what a user might do meanwhile
    assert orders(1, 2, 0) == [found[1][2], found[1][0]]


def test_lightning_tells_the_batches_which_epoch_it_is() -> None:
    batches = Batches(TensorDataset(torch.arange(10)), lambda epoch: [np.array([epoch])])
    loader = ResumableLoader(batches, sampler=InOrder(batches))
    loader.sampler.set_epoch(7)
    assert [batch.tolist() for (batch,) in loader] == [[7]]


def test_an_order_that_is_given_is_the_one_that_is_trained_on(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir, order=lambda epoch: [np.array([3, 1]), np.array([4])])
    data.setup()
    assert [batch[1].tolist() for batch in data.train_dataloader()] == [
        data.train.tensors[1][[3, 1]].tolist(),
        data.train.tensors[1][[4]].tolist(),
    ]


def test_each_epoch_of_a_training_has_its_own_order_and_every_image_once(data_dir: Path) -> None:
    class Seen(L.Callback):
        def __init__(self) -> None:
            self.epochs: list[list[torch.Tensor]] = []

        def on_train_epoch_start(self, *_: object) -> None:
            self.epochs.append([])

        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: list, _: int) -> None:
            self.epochs[-1].append(batch[0].sum(dim=(1, 2, 3)))

    seen = Seen()
    data = MNISTDataModule(data_dir, batch_size=300, validation_images=58_000)
    make_trainer(seen, max_epochs=2, limit_val_batches=0).fit(LitMNIST(), data)
    first, second = (torch.cat(sums) for sums in seen.epochs)
    assert [len(batch) for batch in seen.epochs[0]] == [300] * 6 + [200]
    assert not torch.equal(first, second)
    expected = scale_pixels(data.train.tensors[0][data.train_indices], torch.float32).sum(dim=(1, 2, 3))
    for epoch in (first, second):
        torch.testing.assert_close(epoch.sort().values, expected.sort().values)


def test_held_out_images_are_stratified_and_not_trained_on(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir, validation_images=5_000)
    data.setup()
    labels = data.train.tensors[1].numpy()
    held_out = np.bincount(labels[data.validation_indices], minlength=10)
    np.testing.assert_allclose(held_out, np.bincount(labels) * 5_000 / 60_000, atol=1)
    assert sorted([*data.train_indices, *data.validation_indices]) == list(range(60_000))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 999, 1000])
def test_a_stratified_sample_has_the_size_asked_for(count: int) -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    sample = stratified_sample(labels, count, seed=1)
    assert len(set(sample)) == count
    np.testing.assert_array_equal(sample, stratified_sample(labels, count, seed=1))
    if 0 < count < 1000:
        assert set(sample) != set(stratified_sample(labels, count, seed=2))


@pytest.mark.parametrize(
    ("flags", "world_size", "limit", "message"),
    [
        ({"batch_size": 100}, 3, None, "a batch is 100 images, which do not divide among 3 devices"),
        ({"batch_size": 98}, 7, None, "the last batch of an epoch is 24 images"),
        ({"batch_size": 100}, 1, 0.001, "less than one of the 600 batches"),
    ],
)
def test_batches_that_cannot_be_had_are_refused(
    flags: dict[str, int], world_size: int, limit: float | None, message: str, data_dir: Path
) -> None:
    data = MNISTDataModule(data_dir, **flags)
    data.setup()
    with pytest.raises(InputError, match=message):
        data.check_batches(world_size, limit)


def test_holding_everything_out_is_refused(data_dir: Path) -> None:
    with pytest.raises(InputError, match="60000 training images"):
        MNISTDataModule(data_dir, validation_images=60_000).setup()


def test_a_data_module_is_loaded_from_a_checkpoint_as_it_was(tmp_path: Path, data_dir: Path) -> None:
    asked = {"data_dir": data_dir, "batch_size": np.int64(50), "validation_images": 7, "seed": 3, "verify_data": False}
    trainer = make_trainer(max_epochs=0)
    trainer.fit(LitMNIST(), MNISTDataModule(**asked))  # type: ignore[arg-type]  # of NumPy's
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = MNISTDataModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True, seed=4)
    assert {name: getattr(loaded, name) for name in asked} == asked | {"data_dir": str(data_dir), "seed": 4}


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_an_order_may_be_in_any_whole_numbers(dtype: str, data_dir: Path) -> None:
    """torch takes bytes for a mask."""
    order = [np.array([1, 0, 1, 5], dtype), np.array([2, 3])]
    data = MNISTDataModule(data_dir, order=lambda epoch: order)
    images, labels = next(iter(data.train_dataloader()))
    assert torch.equal(labels, data.train.tensors[1][[1, 0, 1, 5]])
    assert len(images) == 4


def test_what_a_subclass_makes_of_the_images_is_made_once(data_dir: Path) -> None:
    class Inverted(MNISTDataModule):
        def setup(self, stage: str) -> None:  # type: ignore[override]  # as Lightning's own class has it
            super().setup(stage)
            self.train, self.test = (TensorDataset(255 - x, y) for x, y in (self.train.tensors, self.test.tensors))

    plain, data = MNISTDataModule(data_dir, validation_images=10), Inverted(data_dir, validation_images=10)
    plain.setup()
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(LitMNIST(), data)
    trainer.test(LitMNIST(), data, verbose=False)
    for own, read in ((data.train, plain.train), (data.test, plain.test)):
        assert torch.equal(own.tensors[0], 255 - read.tensors[0])
    alone = Inverted(data_dir, validation_images=10)
    for _ in range(2):
        alone.train_dataloader(), alone.val_dataloader()
        assert torch.equal(alone.train.tensors[0], data.train.tensors[0])


def test_a_subset_in_place_of_the_images_is_refused(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir)
    data.setup()
    whole = data.test
    data.test = Subset(whole, range(10))  # type: ignore[assignment]
    with pytest.raises(InputError, match="a data set is a Subset; expected a TensorDataset"):
        data.test_dataloader()
    data.test = whole
    make_trainer(limit_test_batches=1).test(LitMNIST(), data, verbose=False)
    data.test = Subset(whole, range(10))  # type: ignore[assignment]
    with pytest.raises(InputError, match="a data set is a Subset; expected a TensorDataset"):
        data.test_dataloader()


def test_an_order_that_each_device_would_draw_anew_is_refused(data_dir: Path) -> None:
    generator = np.random.default_rng(0)
    data = MNISTDataModule(data_dir, order=lambda epoch: [generator.permutation(60)])
    data.setup()
    assert len(data.training_order(0)) == 1  # on one device it may
    with pytest.raises(InputError, match="gives other batches when it is asked again"):
        data.training_order(0, world_size=2)


def test_workers_that_would_stay_in_the_first_epoch_are_refused(data_dir: Path) -> None:
    data = MNISTDataModule(data_dir)
    data.setup()
    batches = data.batches(data.train, data.order)
    with pytest.raises(InputError, match="persistent_workers"):
        ResumableLoader(batches, InOrder(batches), num_workers=1, persistent_workers=True)


@pytest.mark.parametrize("example", [(torch.rand(2, 1, 28, 28),), {"images": torch.rand(2, 1, 28, 28)}])
def test_an_example_for_the_summary_may_have_any_form(example: Any, data_dir: Path) -> None:
    module = LitMNIST()
    module.example_input_array = example
    trainer = make_trainer(L.pytorch.callbacks.ModelSummary(), max_steps=1, limit_val_batches=0)
    trainer.fit(module, MNISTDataModule(data_dir))
    assert trainer.global_step == 1
