"""MNIST for Lightning: whole images in memory as bytes, whole batches taken at once."""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, SequentialSampler, TensorDataset

from lit_mnist.errors import InputError
from lit_mnist.fused import is_traced
from lit_mnist.mnist_files import read_files

CLASSES = 10
LARGEST_PIXEL = 16.0  # that is taken for one of an image that was scaled, with a wide margin
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
        order: of the training images, in place of `train_order`: a function from the number of an epoch, from 0, to its
            batches, arrays of indices of training images; as many in each epoch, and for an epoch the same each time:
            each device asks for itself. `load_from_checkpoint` takes it anew, since no checkpoint holds it.

    Outside of a Trainer its loaders give the same batches as bytes and classes; there `loader.sampler.set_epoch(epoch)`
    takes them to the order of another epoch.

    Raises:
        InputError: from `setup`, if a file is unusable, more images are to be held out than there are, or the batches
            are none that the Trainer's devices can share.
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
        if not (order is None or callable(order)):
            raise InputError(f"order is {described(order)}; expected a function from the number of an epoch to batches")
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.validation_images = validation_images
        self.seed = seed
        self.verify_data = verify_data
        self.order = order or self.train_order
        self._check_numbers()
        self._resumed: dict[str, int] = {}  # the state of the loader to come
        numbers = {"batch_size": batch_size, "validation_images": validation_images, "seed": seed}
        plain = {name: int(value) for name, value in numbers.items()}  # of NumPy's, a checkpoint would not load
        kept = {"data_dir": str(data_dir), "verify_data": bool(verify_data)} | plain
        self.save_hyperparameters(kept, logger=False)  # where a module with a seed of its own would be in its way

    def _check_numbers(self) -> None:
        for name, least in (("batch_size", 1), ("validation_images", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < least:
                raise InputError(f"expected a whole number from {least} up", **{name: value})

    def setup(self, stage: str | None = None) -> None:
        self._check_numbers()  # again: a finder of batch sizes sets them
        self._resumed = {}
        if not self._is_set_up():  # Lightning asks before each of fit, test and predict
            self._read()
        self.train, self.test, self.sha256 = self._files  # as they were read, whatever a subclass has made of them
        if stage == "fit" and self.trainer is not None:
            # Not in train_dataloader: after an error there, Lightning (2.6.6) leaves torch's DataLoader patched.
            self.check_batches(self.trainer.world_size)

    def _is_set_up(self) -> bool:
        return getattr(self, "_served", None) == self._asked()

    def _asked(self) -> tuple[Any, ...]:
        return self.data_dir, self.verify_data, self.validation_images, self.seed

    def _set_up(self) -> None:
        """Set up outside of a Trainer, which has done it; not twice: a subclass may have changed what was read."""
        if not self._is_set_up():
            self.setup(None)

    def _read(self) -> None:
        read = read_files(self.data_dir, self.verify_data)
        labels = read.train.tensors[1].numpy()
        if self.validation_images >= len(labels):
            raise InputError(
                f"there are {len(labels)} training images; at least one must be left to train on",
                validation_images=self.validation_images,
            )
        self._files, self._served = read, self._asked()
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
        batches = self.training_order(0, world_size)
        if limit_train_batches is not None and limit_train_batches < 1 and int(len(batches) * limit_train_batches) == 0:
            raise InputError(
                f"less than one of the {len(batches)} batches of an epoch", limit_train_batches=limit_train_batches
            )

    def training_order(self, epoch: int, world_size: int = 1) -> list[np.ndarray]:
        """Return the batches of an epoch that are trained on, those of `order`.

        Raises:
            InputError: if they are no batches of training images, one does not divide among the devices, or each device
                would draw others.
        """
        given = self.order(epoch)
        batches = (
            list(map(_as_array, given)) if isinstance(given, Iterable) and getattr(given, "ndim", None) != 0 else []
        )
        found = described(given if isinstance(given, Sequence) or not batches else batches)
        valid = bool(batches) and all(batch.ndim == 1 and batch.size and batch.dtype.kind in "iu" for batch in batches)
        if valid:
            indices = np.concatenate(batches)
            found = f"indices {indices.min()} to {indices.max()}"
            valid = 0 <= indices.min() <= indices.max() < len(self.train)
        if not valid:
            raise InputError(
                f"order({epoch}) gave {found}; expected batches, each an array of indices of training images, 0 to "
                f"{len(self.train) - 1}, [N]"
            )
        odd = [index for index, batch in enumerate(batches) if len(batch) % world_size]
        if odd:
            last = odd[0] == len(batches) - 1 > 0
            which = f"{'the last batch of an epoch' if last else 'a batch'} is {len(batches[odd[0]])} images"
            what = f"{which}, which do not divide among {world_size} devices"
            if self.order == self.train_order:
                raise InputError(f"{what}; choose another size, or one device", batch_size=self.batch_size)
            raise InputError(f"order({epoch}): {what}")
        if world_size > 1 and self.order != self.train_order:
            again = list(map(_as_array, self.order(epoch)))
            if not (len(again) == len(batches) and all(map(np.array_equal, again, batches))):
                raise InputError(
                    f"order({epoch}) gives other batches when it is asked again, so each device would have its own; "
                    "draw them with a generator of its own: np.random.default_rng([seed, epoch])"
                )
        return batches

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
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        # Lightning tells a loader of the same epoch, but only once it is made.
        return Batches(dataset, order, self.trainer.global_rank, self.trainer.world_size, epochs.processed)

    def _trainer_at_work(self) -> L.Trainer | None:
        """Return the Trainer for which batches are wanted: one that is done stays attached."""
        trainer = self.trainer
        return None if trainer is None or trainer.state.finished or trainer.interrupted else trainer

    def train_dataloader(self) -> DataLoader:
        self._set_up()
        trainer = self._trainer_at_work()
        order: Order = partial(self.training_order, world_size=1 if trainer is None else trainer.world_size)
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]  # the Trainer's argument
            order = partial(_first_epoch, order)
        loader = self._loader(self.train, order)
        loader.load_state_dict(self._resumed)
        self._resumed = {}
        return loader

    # For modules other than ours: Lightning (2.6.6) does not restore a loader that is asked for before its loops are
    # restored, as by `trainer.estimated_stepping_batches` in `configure_optimizers` (pytorch-lightning#20550).
    def state_dict(self) -> dict[str, Any]:
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer is not None and not (self.trainer.evaluating or self.trainer.predicting):
            self._resumed = state_dict

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        self._set_up()
        if self.validation_images == 0:
            return []
        return self._loader(self.train, self.validation_order)

    def test_dataloader(self) -> DataLoader:
        self._set_up()
        return self._loader(self.test, self.test_order)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale bytes and code classes, on the device: images [N, 1, 28, 28] in [0, 1], one-hot labels [N, 10]."""
        assert self.trainer is not None
        dtype = self.trainer.lightning_module.dtype
        assert isinstance(dtype, torch.dtype)
        if isinstance(batch, Tensor):  # the example_input_array of a module
            return prepare_images(batch, dtype)
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            return batch  # another form of it, or one that the step refuses
        return prepare(batch, dtype, look_at_labels=False)  # [N, 1, 28, 28], [N, 10]

    def gather(self, predictions: Sequence[Tensor] | None) -> np.ndarray:
        """Put what each device predicted for its test images in their order, on every device: [I, ...].

        Args:
            predictions: this device's, of one batch after the other, [N, ...] each; of all batches or the first few.

        Raises:
            InputError: if no Trainer has predicted with this data module, or these are not of its batches.
        """
        if self.trainer is None:
            raise InputError("gather: this data module has no Trainer; give it to trainer.predict first")
        given = list(predictions) if predictions is not None else []
        indices = self.batches(self.test, self.test_order).indices[: len(given)]
        sizes = [len(of_one) for of_one in given if isinstance(of_one, Tensor) and of_one.ndim]
        if not given or sizes != [len(of_one) for of_one in indices]:
            raise InputError(
                f"gather: predictions are {described(predictions)}; expected what this device has predicted for its "
                "batches of test images, one tensor [N, ...] each"
            )
        own = torch.cat(given)  # [own images, ...]
        device = self.trainer.strategy.root_device
        own = own.to(device, torch.promote_types(own.dtype, torch.float32))  # NumPy has no bfloat16
        everyone, seen = own.new_zeros(len(self.test), *own.shape[1:]), own.new_zeros(len(self.test))
        images = torch.cat(indices).to(device)
        everyone[images], seen[images] = own, 1
        everyone, seen = (self.trainer.strategy.reduce(rows, reduce_op="sum") for rows in (everyone, seen))
        return everyone[seen > 0].cpu().numpy()

    def _loader(self, dataset: TensorDataset, order: Order) -> "ResumableLoader":
        if not isinstance(dataset, TensorDataset):
            raise InputError(
                f"a data set is {described(dataset)}; expected a TensorDataset of images, bytes [I, 1, 28, 28], and "
                "classes [I]; for some of the images override train_order or test_order, which give their indices"
            )
        trainer = self._trainer_at_work()
        is_done = trainer is not self.trainer
        batches = Batches(dataset, order) if is_done else self.batches(dataset, order)
        if trainer is None:  # nobody has shared the batches out: a Trainer that gets the loader later does it
            return ResumableLoader(batches, sampler=InOrder(batches))
        trained = partial(attrgetter("fit_loop.epoch_loop.batch_progress.current.processed"), trainer)
        return ResumableLoader(batches, sampler=SharedInOrder(batches), trained=trained)


class Batches(Dataset[tuple[Tensor, ...]]):
    """The batches of an epoch, of each the share of one device: every `world_size`-th image.

    All devices together see in each step exactly the images that a single device would see. A whole batch is one item,
    taken at once, so that a sampler chooses among batches. Lightning's BatchSizeFinder takes their number for that of
    the images, and stops there.

    Args:
        dataset: of the images.
        order: returns the batches of an epoch, over all devices together; the same number in each.
        rank: number of this device, 0 to world_size - 1.
        world_size: number of devices.
        epoch: the first, from 0.

    Attributes:
        indices: of the images of each batch of the epoch, [n] each, on the device of the images.
        checksum: of the batches of the epoch, over all devices together.
    """

    def __init__(
        self, dataset: TensorDataset, order: Order, rank: int = 0, world_size: int = 1, epoch: int = 0
    ) -> None:
        self.dataset, self.order, self.rank, self.world_size = dataset, order, rank, world_size
        self.epoch = -1
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            batches = self.order(epoch)
            if self.epoch >= 0 and len(batches) != len(self):
                raise InputError(
                    f"the order of epoch {epoch} has {len(batches)} batches, expected {len(self)} as before; "
                    "a Trainer takes others with reload_dataloaders_every_n_epochs=1"
                )
            self.epoch = epoch
            self.checksum = zlib.crc32(
                repr([len(batch) for batch in batches]).encode(), zlib.crc32(np.concatenate(batches).tobytes())
            )
            own = [batch[self.rank :: self.world_size] for batch in batches]
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


class SharedInOrder(InOrder, DistributedSampler[int], SequentialSampler):
    """The same for batches of a Trainer's data module.

    By its classes Lightning knows that they are shares already, and for `overfit_batches` that they are in order.
    """

    def __init__(self, batches: Batches) -> None:
        DistributedSampler.__init__(self, batches, batches.world_size, batches.rank, shuffle=False)
        InOrder.__init__(self, batches)


class ResumableLoader(DataLoader[tuple[Tensor, ...]]):
    """A DataLoader that resumes in the middle of an epoch, through the two methods that Lightning looks for.

    Lightning saves its state in a checkpoint and, if that lies within an epoch, loads it before it asks for batches.

    Args:
        dataset: batches, one an item.
        sampler: which of them and when.
        trained: says how many batches of the epoch were trained on; None for all that were handed out, also the one in
            which an error came.
        options: as of a DataLoader.

    Raises:
        InputError: if workers are to be persistent.
    """

    def __init__(
        self, dataset: Batches, sampler: Sampler[int], trained: Callable[[], int] | None = None, **options: Any
    ) -> None:
        if options.get("persistent_workers"):
            raise InputError(
                "persistent_workers=True: a worker that stays would give the batches of its first epoch for ever; "
                "leave it out"
            )
        super().__init__(dataset, sampler=sampler, **options | {"batch_size": None})
        self.batches = dataset
        self.trained = trained
        self.taken, self.epoch = 0, 0  # how many batches of which epoch were handed out
        self.saved: dict[str, int] = {}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator, as good as an iterator
        # With a checkpoint of the last batch of an epoch, Lightning goes on with the next.
        self.epoch = self.batches.epoch
        self.taken = self.saved.get("batches", 0) if self.saved.get("epoch") == self.epoch else 0
        if self.taken and self.saved.get("order", self.batches.checksum) != self.batches.checksum:
            raise InputError(
                "the checkpoint is from within an epoch of other batches; give the batch_size, validation_images, seed "
                "and order of before, or resume from the end of an epoch"
            )
        self.saved = {}
        for batch in itertools.islice(super().__iter__(), self.taken, None):
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        # A batch that was handed out when an error came is handed out again.
        taken = self.taken if self.trained is None else min(self.taken, self.trained())
        return {"batches": taken, "epoch": self.epoch, "order": self.batches.checksum}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.saved = {name: state[name] for name in ("batches", "epoch", "order") if name in state}


def _first_epoch(order: Order, epoch: int) -> Sequence[np.ndarray]:
    """Return the batches of the first epoch: `overfit_batches` trains on the same ones in each."""
    return order(0)


def _as_array(value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # no numbers, or lists of different lengths
        return np.array(None)
    # torch takes bytes for a mask, and no other whole numbers than int64 and int32 for indices.
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


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
        raise InputError(f"a batch is {described(batch)}; expected images and labels, a pair of tensors")
    images, labels = prepare_images(batch[0], dtype), batch[1]
    classes = labels.ndim == 1 and not labels.dtype.is_floating_point and labels.dtype != torch.bool
    usable = labels.shape[:1] == images.shape[:1] and not labels.is_complex() and labels.layout == torch.strided
    if not (usable and (classes or labels.shape[1:] == (CLASSES,))):
        raise InputError(
            f"labels are {described(labels)} for {len(images)} images; expected classes 0 to 9, [N], or one-hot rows, "
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
    pixels = pixels and images.layout == torch.strided
    if not pixels or images.shape[1:] != (1, 28, 28):
        raise InputError(
            f"images are {described(images)}; expected bytes, or floats in [0, 1], [N, 1, 28, 28] or [N, 28, 28]"
        )
    return scale_pixels(images, dtype) if images.dtype == torch.uint8 else images.to(dtype)


def check_scale(images: Any) -> None:
    """Refuse floats that are bytes, 0 to 255 in place of [0, 1], where to look at them costs no wait for a device.

    Pixels that were brought to a mean of zero pass.

    Raises:
        InputError: names what came and what was expected.
    """
    if type(images) is not Tensor or not images.is_floating_point() or images.device.type != "cpu" or is_traced():
        return
    if images.layout == torch.strided and images.numel():
        low, high = images.detach().aminmax()
        if low >= 0 and high > LARGEST_PIXEL:
            raise InputError(
                f"images are {described(images)} from {low:g} to {high:g}; expected floats in [0, 1], or bytes"
            )


def described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        sparse = "sparse " if isinstance(value, Tensor) and value.layout != torch.strided else ""
        return f"{sparse}{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple | list):
        parts = f" ({', '.join(map(described, value[:3]))})" if value else ""
        return f"a {type(value).__name__} of {len(value)}{parts}"
    return "None" if value is None else f"a {type(value).__name__}"


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
