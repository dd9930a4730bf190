"""Where a step of the documented training goes: its parts one after the other, and what Trainer.fit adds."""

import argparse
import itertools
import json
import statistics
import time
from typing import Any

import lightning as L

from lit_mnist.data import MNISTDataModule, prepare
from lit_mnist.module import Averages, LitMNIST
from lit_mnist.runs.progress import silence_lightning

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--steps", type=int, default=400)


class Steps(L.Callback):
    """Note when each step of a fit has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def bare_loop(data: MNISTDataModule, steps: int) -> dict[str, float]:
    """Return the milliseconds of each part of a step without a Trainer, medians over the second half."""
    module, averages = LitMNIST(), Averages()
    optimizer = module.configure_optimizers()
    batches = data.batches(data.train, data.order)
    times: list[list[float]] = []
    for step in range(steps):
        stamps = [time.perf_counter()]
        images, labels = prepare(batches[step % len(batches)], module.dtype, look_at_labels=False)  # type: ignore[arg-type]
        stamps.append(time.perf_counter())
        logits = module.model(images)
        loss = module.loss(logits, labels)
        stamps.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        stamps.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
        averages.update(loss.detach(), logits.detach(), labels)
        stamps.append(time.perf_counter())
        times.append([after - before for before, after in itertools.pairwise(stamps)])
    names = ("batch", "forward and loss", "backward", "optimizer", "averages")
    parts = zip(names, zip(*times[steps // 2 :], strict=True), strict=True)
    return {name: 1000 * statistics.median(values) for name, values in parts}


def in_fit(data: MNISTDataModule, steps: int) -> float:
    """Return the milliseconds of a step in Trainer.fit, the median over the second half."""
    noted = Steps()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[noted],
    )
    trainer.fit(LitMNIST(), data)
    ends = noted.ends[steps // 2 :]
    return 1000 * statistics.median(after - before for before, after in itertools.pairwise(ends))


def main() -> None:
    args = parser.parse_args()
    silence_lightning()
    data = MNISTDataModule(args.data_dir, verify_data=False)
    data.setup()
    parts = bare_loop(data, args.steps)
    step = in_fit(data, args.steps)
    print(json.dumps({**parts, "Trainer.fit": step - sum(parts.values()), "step": step}))


if __name__ == "__main__":
    main()
