"""MNIST for Lightning: whole images in memory as bytes, whole batches taken at once."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.datasets.mnist import read_image_file, read_label_file

from lit_mnist.mnist_files import prepare_files
from lit_mnist.runs.command import InputError

CLASSES = 10
EVALUATION_BATCH_SIZE = 1000  # of no effect on a result; the largest that stays within the cache of a usual CPU core


class MNISTDataModule(L.LightningDataModule):
    """Serve MNIST: batches of scaled images [N, 1, 28, 28] in [0, 1] and one-hot labels [N, 10].

    Images are bytes in memory, that of a GPU if they fit; scaling and one-hot coding happen on the device, in the dtype
    of the model. The last batch of an epoch may be short; no image is dropped or seen twice.

    Args:
        data_dir: directory that holds, or will hold, `MNIST/raw`.
        batch_size: images in a training step, over all devices together, >= 1.
        validation_images: how many training images to hold out, in the proportions of the classes, >= 0.
        seed: decides the order of the images and which are held out, >= 0.
        verify_data: insist on MNIST's own files, by digest; False accepts other data in the same format.

    Raises:
        InputError: from `prepare_data` if a file is unusable, from `setup` if more images are to be held out than
            there are.
    """

    def __init__(
        self,
        data_dir: str | Path = "data",
        batch_size: int = 100,
        validation_images: int = 0,
        seed: int = 0,
        verify_data: bool = True,
    ) -> None:
        super().__init__()
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.validation_images = validation_images
        self.seed = seed
        self.verify_data = verify_data

    def prepare_data(self) -> None:
        prepare_files(self.data_dir, self.verify_data)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train"):
            return  # Lightning asks before each of fit, test and predict
        self.train, self.test = (read_split(self.data_dir, split) for split in ("train", "t10k"))
        labels = self.train.tensors[1].numpy()
        if self.validation_images >= len(labels):
            raise InputError(
                f"--validation_images {self.validation_images}: there are {len(labels)} training images; "
                "at least one must be left to train on"
            )
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
        images = len(self.train_indices)
        for size, which in ((self.batch_size, "a batch"), (images % self.batch_size, "the last batch of an epoch")):
            if size % world_size:
                raise InputError(
                    f"--batch_size {self.batch_size}: {which} is {size} images, which do not divide among "
                    f"{world_size} devices; choose another --batch_size, or --devices 1"
                )
        batches = len(self.train_batches())
        if limit_train_batches is not None and limit_train_batches < 1 and int(batches * limit_train_batches) == 0:
            raise InputError(
                f"--limit_train_batches {limit_train_batches}: less than one of the {batches} batches of an epoch"
            )

    def train_batches(self) -> "Batches":
        return self._batches(self.train_indices, self.batch_size, shuffle=True)

    def test_batches(self) -> "Batches":
        return self._batches(np.arange(len(self.test)), EVALUATION_BATCH_SIZE)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.train_batches(), ResumableLoader)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.validation_images == 0:
            return []
        return self._loader(self.train, self._batches(self.validation_indices, EVALUATION_BATCH_SIZE))

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.test_batches())

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        assert self.trainer is not None
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        images, labels = batch
        return scale_pixels(images, dtype), one_hot(labels, dtype)  # [N, 1, 28, 28], [N, 10]

    def _loader(self, dataset: TensorDataset, batches: "Batches", kind: type[DataLoader] = DataLoader) -> DataLoader:
        assert self.trainer is not None
        dataset = on_device(dataset, self.trainer.strategy.root_device)
        batches.device = dataset.tensors[0].device
        return kind(dataset, sampler=batches, batch_size=None)

    def _batches(self, indices: np.ndarray, batch_size: int, shuffle: bool = False) -> "Batches":
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Batches(indices, batch_size, rank, world_size, shuffle, self.seed)


class Batches(DistributedSampler):
    """Yield the indices of one batch after the other, the share of one device: every `world_size`-th of each batch.

    All devices together see in each step exactly the images that a single device would see, and each image once in an
    epoch. If shuffled, the order is a pure function of (seed, epoch); Lightning calls `set_epoch`. It is a
    `DistributedSampler` so that Lightning does not share the batches out a second time. `taken` says how many batches
    of the epoch were handed out; setting `skip` leaves out that many of the next epoch, once. `device` is where
    the indices are to be, the CPU unless it is set.

    Args:
        indices: of the images to serve, [I].
        batch_size: images in a step, over all devices together.
        rank: number of this device, 0 to world_size - 1.
        world_size: number of devices.
        shuffle: False keeps the order of `indices`.
        seed: of the order, >= 0.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(TensorDataset(torch.from_numpy(indices)), world_size, rank, shuffle, seed)
        self.indices = indices
        self.batch_size = batch_size
        self.steps = -(-len(indices) // batch_size)
        self.taken = self.skip = 0
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        self.taken, self.skip = self.skip, 0
        own = [batch[self.rank :: self.num_replicas] for batch in self.whole_batches()]
        # To the device once an epoch: each copy waits for it.
        indices = torch.from_numpy(np.concatenate(own)).to(self.device)
        for batch in itertools.islice(torch.split(indices, [len(share) for share in own]), self.taken, None):
            self.taken += 1
            yield batch

    def whole_batches(self) -> Iterator[np.ndarray]:
        """Yield the indices of each batch of the epoch, over all devices together."""
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))


class ResumableLoader(DataLoader):
    """A DataLoader over `Batches` that goes on in the middle of an epoch, through the two methods Lightning looks for.

    Lightning saves its state in a checkpoint and, if that lies within an epoch, loads it before it asks for batches.
    """

    def state_dict(self) -> dict[str, int]:
        assert isinstance(self.sampler, Batches)
        return {"batches": self.sampler.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.sampler, Batches)
        self.sampler.skip = state["batches"]


def read_split(data_dir: Path, split: str) -> TensorDataset:
    """Read the prepared files of a split, "train" or "t10k": images uint8 [I, 1, 28, 28], labels int64 [I]."""
    raw = data_dir / "MNIST" / "raw"
    images = read_image_file(str(raw / f"{split}-images-idx3-ubyte"))  # [I, 28, 28]
    labels = read_label_file(str(raw / f"{split}-labels-idx1-ubyte"))  # [I]
    return TensorDataset(images.unsqueeze(1), labels)  # [I, 1, 28, 28], [I]


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


def scale_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale bytes 0 to 255 to [0, 1] in `dtype`, to the same bit on every device.

    The divisor is a tensor on the device because CUDA divides by a Python number by multiplying with its reciprocal,
    which rounds differently.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return (images.to(wide) / torch.full((), 255, dtype=wide, device=images.device)).to(dtype)


def one_hot(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn classes [N] into rows [N, 10] that are one at the class and zero elsewhere."""
    return F.one_hot(labels, CLASSES).to(dtype)
