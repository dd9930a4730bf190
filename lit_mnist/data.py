"""MNIST for Lightning: whole images in memory as bytes, whole batches taken at once."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.validation_images = validation_images
        self.seed = seed
        self.verify_data = verify_data
        self.order = order or self.train_order

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train"):
            return  # Lightning asks before each of fit, test and predict
        self.train, self.test, self.sha256 = read_files(self.data_dir, self.verify_data)
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
        batches = self.order(0)
        for size, which in ((len(batches[0]), "a batch"), (len(batches[-1]), "the last batch of an epoch")):
            if size % world_size:
                raise InputError(
                    f"--batch_size {self.batch_size}: {which} is {size} images, which do not divide among "
                    f"{world_size} devices; choose another --batch_size, or --devices 1"
                )
        if limit_train_batches is not None and limit_train_batches < 1 and int(len(batches) * limit_train_batches) == 0:
            raise InputError(
                f"--limit_train_batches {limit_train_batches}: less than one of the {len(batches)} batches of an epoch"
            )

    def train_order(self, epoch: int) -> list[np.ndarray]:
        """Draw the batches of an epoch, a pure function of (seed, epoch): indices of training images, [N] each."""
        return cut(np.random.default_rng([self.seed, epoch]).permutation(self.train_indices), self.batch_size)

    def test_order(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of the test images, as they stand in the files."""
        return cut(np.arange(len(self.test)), EVALUATION_BATCH_SIZE)

    def batches(self, order: Order, device: torch.device | None = None) -> "Batches":
        """Return this device's share of the batches, with indices that lie on `device`."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Batches(order, rank, world_size, device)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, self.order, ResumableLoader)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.validation_images == 0:
            return []
        batches = cut(self.validation_indices, EVALUATION_BATCH_SIZE)
        return self._loader(self.train, lambda epoch: batches)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test, self.test_order)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        assert self.trainer is not None
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        images, labels = batch
        return scale_pixels(images, dtype), one_hot(labels, dtype)  # [N, 1, 28, 28], [N, 10]

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
        everyone[torch.cat(list(self.batches(self.test_order, device))[: len(predictions)])] = own
        count = self.trainer.strategy.reduce(torch.tensor(len(own), device=device), reduce_op="sum")
        return self.trainer.strategy.reduce(everyone, reduce_op="sum")[: int(count)].cpu().numpy()

    def _loader(self, dataset: TensorDataset, order: Order, kind: type[DataLoader] = DataLoader) -> DataLoader:
        if self.trainer is not None:
            dataset = on_device(dataset, self.trainer.strategy.root_device)
        return kind(dataset, sampler=self.batches(order, dataset.tensors[0].device), batch_size=None)


class Batches(DistributedSampler):
    """Yield the indices of one batch after the other, the share of one device: every `world_size`-th of each batch.

    All devices together see in each step exactly the images that a single device would see. It is a
    `DistributedSampler` so that Lightning calls `set_epoch` and does not share the batches out a second time.

    Args:
        order: returns the batches of an epoch, over all devices together; the same number in each.
        rank: number of this device, 0 to world_size - 1.
        world_size: number of devices.
        device: where the indices are to lie; None for the CPU.

    Attributes:
        taken: how many batches of the epoch were handed out.
        skip: how many of the next epoch to leave out, once.
    """

    def __init__(self, order: Order, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        super().__init__(TensorDataset(torch.empty(0)), world_size, rank)  # which images there are, `order` knows
        self.order = order
        self.device = device
        self.steps = len(order(0))
        self.taken = self.skip = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        self.taken, self.skip = self.skip, 0
        own = [batch[self.rank :: self.num_replicas] for batch in self.order(self.epoch)]
        # To the device once an epoch: each copy waits for it.
        indices = torch.from_numpy(np.concatenate(own)).to(self.device or "cpu")
        for batch in itertools.islice(torch.split(indices, [len(share) for share in own]), self.taken, None):
            self.taken += 1
            yield batch


class ResumableLoader(DataLoader):
    """A DataLoader over `Batches` that resumes in the middle of an epoch, through the two methods Lightning looks for.

    Lightning saves its state in a checkpoint and, if that lies within an epoch, loads it before it asks for batches.
    """

    def state_dict(self) -> dict[str, int]:
        assert isinstance(self.sampler, Batches)
        return {"batches": self.sampler.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.sampler, Batches)
        self.sampler.skip = state["batches"]


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
