"""MNIST for Lightning: whole images in memory as bytes, whole batches taken at once."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset

from lit_mnist.errors import InputError
from lit_mnist.mnist_files import read_files

CLASSES = 10
EVALUATION_BATCH_SIZE = 1000  # of no effect on a result; the largest that stays within the cache of a usual CPU core

Order = Callable[[int], Sequence[np.ndarray]]  # from the number of an epoch, from 0, to the indices of its batches


class MNISTDataModule(L.LightningDataModule):
    """Serve MNIST: batches of scaled images [N, 1, 28, 28] in [0, 1] and one-hot labels [N, 10].

    Images are bytes in memory, that of a GPU if they fit; scaling and one-hot coding happen on the device, in the dtype
    of the model. The last batch of an epoch may be short; no image is dropped or seen twice.

    Args:
        data_dir: directory that may hold `MNIST/raw`; files that are not there come from this package.
        batch_size: images in a training step, over all devices together, >= 1.
        validation_images: how many training images to hold out, in the proportions of the classes, >= 0.
        seed: decides the order of the images and which are held out, >= 0.
        verify_data: insist on MNIST's own files, by digest; False accepts other data in the same format.
        order: of the training images, in place of `train_order`.

    Outside of a Trainer its loaders give the same batches as bytes and classes.

    Raises:
        InputError: from `setup`, if a file is unusable or more images are to be held out than there are.
    """

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 100,
        validation_images: int = 0,
        seed: int = 0,
        verify_data: bool = True,
        order: Order | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("validation_images", validation_images, 0),
            ("seed", seed, 0),
        ):
            if not isinstance(value, int | np.integer) or value < least:
                raise InputError(f"expected a whole number from {least} up", **{name: value})
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.validation_images = validation_images
        self.seed = seed
        self.verify_data = verify_data
        self.order = order or self.train_order

    def setup(self, stage: str | None = None) -> None:
        asked = (self.data_dir, self.verify_data, self.validation_images, self.seed)
        if asked == getattr(self, "_served", None):
            return  # Lightning asks before each of fit, test and predict
        train, self.test, self.sha256 = read_files(self.data_dir, self.verify_data)
        labels = train.tensors[1].numpy()
        if self.validation_images >= len(labels):
            raise InputError(
                f"there are {len(labels)} training images; at least one must be left to train on",
                validation_images=self.validation_images,
            )
        self.train, self._served = train, asked
        self.validation_indices = stratified_sample(labels, self.validation_images, self.seed)
        self.train_indices = np.setdiff1d(np.arange(len(labels)), self.validation_indices)

    def check_batches(self, world_size: int, limit_train_batches: float | None = None) -> None:
        """Make sure that every step has a batch and every device an equal share of it.

        Equal shares are what makes the average over devices the average over the batch, which is Keras' loss.

        Args:
            world_size: number of devices.
            limit_train_batches: as the Trainer takes it: a number of batches or, below 1, their share.

        Raises:
            InputError: if a batch does not divide among the devices, or there would be none.
        """
        batches = self.order(0)
        for size, which in ((len(batches[0]), "a batch"), (len(batches[-1]), "the last batch of an epoch")):
            if size % world_size:
                raise InputError(
                    f"{which} is {size} images, which do not divide among {world_size} devices; choose another size, "
                    "or one device",
                    batch_size=self.batch_size,
                )
        if limit_train_batches is not None and limit_train_batches < 1 and int(len(batches) * limit_train_batches) == 0:
            raise InputError(
                f"less than one of the {len(batches)} batches of an epoch", limit_train_batches=limit_train_batches
            )

    def train_order(self, epoch: int) -> list[np.ndarray]:
        """Draw the batches of an epoch, a pure function of (seed, epoch): indices of training images, [N] each."""
        return cut(np.random.default_rng([self.seed, epoch]).permutation(self.train_indices), self.batch_size)

    def validation_order(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of the images that are held out, as they stand in the files."""
        return cut(self.validation_indices, EVALUATION_BATCH_SIZE)

    def test_order(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of the test images, as they stand in the files."""
        return cut(np.arange(len(self.test)), EVALUATION_BATCH_SIZE)

    def batches(self, dataset: TensorDataset, order: Order) -> "Batches":
        """Return this device's share of the batches of a data set."""
        if self.trainer is None:
            return Batches(dataset, order)
        dataset = on_device(dataset, self.trainer.strategy.root_device)
        return Batches(dataset, order, self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader:
        self.setup()  # by the Trainer it was called
        if self.trainer is not None:
            self.check_batches(self.trainer.world_size)
        return self._loader(self.train, self.order)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        self.setup()
        if self.validation_images == 0:
            return []
        return self._loader(self.train, self.validation_order)

    def test_dataloader(self) -> DataLoader:
        self.setup()
        return self._loader(self.test, self.test_order)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        if isinstance(batch, Tensor):  # the example_input_array of a module
            return prepare_images(batch, dtype)
        return prepare(batch, dtype, look_at_labels=False)  # [N, 1, 28, 28], [N, 10]

    def gather(self, predictions: Sequence[Tensor]) -> np.ndarray:
        """Put what each device predicted for its test images in their order, on every device: [I, ...].

        Args:
            predictions: this device's, of one batch after the other, [N, ...] each; of all batches or the first few.
        """
        assert self.trainer is not None
        own = torch.cat(list(predictions))  # [own images, ...]
        device = self.trainer.strategy.root_device
        own = own.to(device, torch.promote_types(own.dtype, torch.float32))  # NumPy has no bfloat16
        everyone = own.new_zeros(len(self.test), *own.shape[1:])
        indices = self.batches(self.test, self.test_order).indices[: len(predictions)]
        everyone[torch.cat(indices).to(device)] = own
        count = self.trainer.strategy.reduce(torch.tensor(len(own), device=device), reduce_op="sum")
        return self.trainer.strategy.reduce(everyone, reduce_op="sum")[: int(count)].cpu().numpy()

    def _loader(self, dataset: TensorDataset, order: Order) -> DataLoader:
        batches = self.batches(dataset, order)
        # Without a Trainer nobody has shared the batches out: a Trainer that gets the loader later does it.
        return ResumableLoader(batches, sampler=(InOrder if self.trainer is None else SharedInOrder)(batches))


class Batches(Dataset[tuple[Tensor, ...]]):
    """The batches of an epoch, of each the share of one device: every `world_size`-th image.

    All devices together see in each step exactly the images that a single device would see. A whole batch is one item,
    taken at once, so that a sampler chooses among batches.

    Args:
        dataset: of the images.
        order: returns the batches of an epoch, over all devices together; the same number in each.
        rank: number of this device, 0 to world_size - 1.
        world_size: number of devices.

    Attributes:
        indices: of the images of each batch of the epoch, [n] each, on the device of the images.
    """

    def __init__(self, dataset: TensorDataset, order: Order, rank: int = 0, world_size: int = 1) -> None:
        self.dataset, self.order, self.rank, self.world_size = dataset, order, rank, world_size
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            own = [batch[self.rank :: self.world_size] for batch in self.order(epoch)]
            # To the device once an epoch: each copy waits for it.
            indices = torch.from_numpy(np.concatenate(own)).to(self.dataset.tensors[0].device)
            self.indices = torch.split(indices, [len(share) for share in own])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.dataset[self.indices[index]]


class InOrder(Sampler[int]):
    """Choose the batches of an epoch one after the other; Lightning tells it the epoch."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class SharedInOrder(InOrder, DistributedSampler[int]):
    """The same for batches that are shares already: by its class, Lightning knows not to share them out again."""

    def __init__(self, batches: Batches) -> None:
        DistributedSampler.__init__(self, batches, batches.world_size, batches.rank, shuffle=False)
        InOrder.__init__(self, batches)


class ResumableLoader(DataLoader[tuple[Tensor, ...]]):
    """A DataLoader that resumes in the middle of an epoch, through the two methods that Lightning looks for.

    Lightning saves its state in a checkpoint and, if that lies within an epoch, loads it before it asks for batches.

    Args:
        dataset: batches, one an item.
        sampler: which of them and when. Lightning puts another in its place for `overfit_batches`.
        options: as of a DataLoader.
    """

    def __init__(self, dataset: Batches, sampler: Sampler[int], **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, **options | {"batch_size": None})
        self.batches = dataset
        self.taken, self.epoch = 0, 0  # how many batches of which epoch were handed out
        self.saved: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, as good as an iterator
        # With a checkpoint of the last batch of an epoch, Lightning goes on with the next.
        self.epoch = self.batches.epoch
        self.taken = self.saved.get("batches", 0) if self.saved.get("epoch") == self.epoch else 0
        self.saved = {}
        for batch in itertools.islice(super().__iter__(), self.taken, None):
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.taken, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.saved = {name: state[name] for name in ("batches", "epoch")}


def cut(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut indices [I] into batches of `size`, the last with what is left."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def on_device(dataset: TensorDataset, device: torch.device) -> TensorDataset:
    """Return a data set on a CUDA device if it takes at most half of the memory that is free there, else as it is."""
    size = sum(tensor.nbytes for tensor in dataset.tensors)
    if device.type != "cuda" or 2 * size > torch.cuda.mem_get_info(device)[0]:
        return dataset
    return TensorDataset(*(tensor.to(device) for tensor in dataset.tensors))


def stratified_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` indices at random, each class in its proportion among `labels`, to within one image.

    Args:
        labels: classes 0 to 9, [I].
        count: from 0 to I.
        seed: the choice is a pure function of (labels, count, seed).

    Returns:
        Indices in ascending order, [count].
    """
    shares = np.bincount(labels, minlength=CLASSES) * count / len(labels)
    wanted = np.floor(shares).astype(int)
    # What rounding down left over goes to the classes that lost most by it.
    wanted[np.argsort(wanted - shares, kind="stable")[: count - wanted.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(np.flatnonzero(labels == k), size, replace=False) for k, size in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))


def prepare(batch: Any, dtype: torch.dtype, look_at_labels: bool = True) -> tuple[Tensor, Tensor]:
    """Turn a batch, as any loader may give it, into what the model is trained on.

    Args:
        batch: images as `prepare_images` takes them, and labels: classes 0 to 9, [N], or one-hot rows, [N, 10].
        dtype: of the model.
        look_at_labels: whether they are classes 0 to 9, which waits for the device; False for those that are known to
            be, as `read_files` has looked at its own.

    Returns:
        Images [N, 1, 28, 28] in [0, 1] and one-hot labels [N, 10].

    Raises:
        InputError: names what came and what was expected.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise InputError(f"a batch is {_described(batch)}; expected images and labels, a pair of tensors")
    images, labels = prepare_images(batch[0], dtype), batch[1]
    classes = labels.ndim == 1 and not labels.dtype.is_floating_point and labels.dtype != torch.bool
    if labels.shape[:1] != images.shape[:1] or labels.is_complex() or not (classes or labels.shape[1:] == (CLASSES,)):
        raise InputError(
            f"labels are {_described(labels)} for {len(images)} images; expected classes 0 to 9, [N], or one-hot rows, "
            "[N, 10]"
        )
    if not classes:
        return images, labels.to(dtype)
    labels = labels.long()
    look_at_labels = look_at_labels and len(labels) > 0 and not torch.compiler.is_compiling()
    if look_at_labels and not 0 <= labels.min() <= labels.max() < CLASSES:
        raise InputError(f"labels are classes {labels.min()} to {labels.max()}; expected 0 to 9")
    return images, one_hot(labels, dtype)


def prepare_images(images: Any, dtype: torch.dtype) -> Tensor:
    """Turn images, as any loader may give them, into what the model takes: [N, 1, 28, 28] in [0, 1], in `dtype`.

    Args:
        images: bytes 0 to 255 or floating-point pixels in [0, 1], [N, 1, 28, 28] or [N, 28, 28].
        dtype: of the model.

    Raises:
        InputError: names what came and what was expected.
    """
    if isinstance(images, Tensor) and images.shape[1:] == (28, 28):
        images = images.unsqueeze(1)
    pixels = isinstance(images, Tensor) and (images.dtype == torch.uint8 or images.dtype.is_floating_point)
    if not pixels or images.shape[1:] != (1, 28, 28):
        raise InputError(
            f"images are {_described(images)}; expected bytes, or floats in [0, 1], [N, 1, 28, 28] or [N, 28, 28]"
        )
    return scale_pixels(images, dtype) if images.dtype == torch.uint8 else images.to(dtype)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(_described, value[:3]))})"
    return f"a {type(value).__name__}"


def scale_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale bytes 0 to 255 to [0, 1] in `dtype`, to the same bit on every device.

    The divisor is a tensor on the device because CUDA divides by a Python number by multiplying with its reciprocal,
    which rounds differently.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return (images.to(wide) / torch.full((), 255, dtype=wide, device=images.device)).to(dtype)


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn classes [N] into rows [N, 10] that are one at the class and zero elsewhere.

    `F.one_hot` would read the smallest and the largest class first, and wait for the device.
    """
    return (labels.unsqueeze(1) == torch.arange(CLASSES, device=labels.device)).to(dtype)
