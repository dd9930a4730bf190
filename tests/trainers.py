"""A Trainer for tests."""

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


def make_trainer(*callbacks: L.Callback, **flags: object) -> L.Trainer:
    """A Trainer on the CPU that writes and shows nothing."""
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **flags,
    )
