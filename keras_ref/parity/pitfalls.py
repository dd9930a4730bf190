"""The mistakes of Keras-to-PyTorch ports that `lit_mnist/mutants.py` makes on purpose, and where the ladder stops each.

Neither framework is imported here; the code of a mistake and its entry here have the same name.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from keras_ref.parity.rungs import USUAL, Verdict, climb
from keras_ref.parity.sides import Sides

STEPS = 60  # of the trajectory, enough for each of them


@dataclass(frozen=True)
class Pitfall:
    """A mistake.

    Args:
        rung: at which the ladder has to stop it.
        named: what the ladder has to name there.
        mistake: what is wrong, in a few words.
        right: how to do it right.
    """

    rung: int
    named: str
    mistake: str
    right: str


PITFALLS = {
    "PixelsNotScaled": Pitfall(1, "train pixels", "pixels left at 0 to 255", "divide by 255"),
    "PixelsNormalised": Pitfall(
        1,
        "train pixels",
        "pixels normalised by mean and standard deviation, as torchvision's examples do",
        "do what the original does: divide by 255, no more",
    ),
    "NoShuffling": Pitfall(
        1,
        "another order in each epoch",
        "`shuffle=False`, which is a DataLoader's default",
        "`fit` shuffles by default: draw a new order for every epoch",
    ),
    "LocalShuffle": Pitfall(
        1,
        "any image anywhere in an epoch",
        "a shuffle buffer of 1,000 images",
        "shuffle the whole epoch: `fit` does for arrays",
    ),
    "BatchesShuffled": Pitfall(
        1,
        "other batches in each epoch",
        "batches cut once and only their order drawn anew",
        "shuffle images, then cut: each epoch has other batches",
    ),
    "LastBatchDropped": Pitfall(
        1, "every image once", "`drop_last=True`", "keep the short last batch: Keras trains on it, too"
    ),
    "ConvWithoutBias": Pitfall(2, "parameters", "`bias=False` in a convolution", "compare parameter counts by layer"),
    "TorchInitialisation": Pitfall(
        3,
        "conv/kernel, ours",
        "torch's default initialisation",
        "`nn.init.xavier_uniform_` for kernels, zeros for biases",
    ),
    "RandomBiases": Pitfall(3, "hidden/bias, ours", "biases drawn at random, as torch does", "set biases to zero"),
    "KernelTransposedOneWay": Pitfall(
        4,
        "conv/kernel, ours",
        "weights come out of the port in another layout than they went in",
        "test that weights go there and back to the same bits",
    ),
    "KernelNotTransposed": Pitfall(
        5,
        "activations/0/conv",
        "rows and columns of the convolution kernel exchanged",
        "HWIO to OIHW is `transpose(3, 2, 0, 1)`",
    ),
    "PaddingOnOneSide": Pitfall(
        5,
        "activations/0/conv",
        "all padding at the right and the bottom",
        '`padding="same"` pads both sides when the stride is 1',
    ),
    "AveragePooling": Pitfall(5, "activations/0/pool", "average pooling for max pooling", "`nn.MaxPool2d(2)`"),
    "FlattensChannelsFirst": Pitfall(
        5,
        "activations/0/hidden",
        "rows of the dense kernel behind `Flatten` left in Keras' order",
        "Keras flattens H, W, C, torch C, H, W: permute the rows",
    ),
    "MissingReLU": Pitfall(
        5,
        "activations/0/hidden",
        "the convolution's activation forgotten",
        '`activation="relu"` in Keras is a call of its own in torch',
    ),
    "BFloat16": Pitfall(
        5, "activations/0/conv", "pixels rounded to bfloat16, as under mixed precision", '`precision="32-true"`'
    ),
    "SoftmaxTwice": Pitfall(
        6,
        "cases: loss",
        "softmax in the model and again in `F.cross_entropy`",
        "return logits to the loss, probabilities to the user",
    ),
    "SummedLoss": Pitfall(6, "cases: loss", "the loss summed over the batch", "average over images"),
    "LabelSmoothing": Pitfall(6, "cases: loss", "label smoothing of 0.01", "Keras' default is none"),
    "ClippedProbabilities": Pitfall(
        6,
        "saturated: loss",
        "the loss taken from probabilities clipped to 1e-7",
        "from the logits: Keras finds them behind the softmax",
    ),
    "MaximumForReLU": Pitfall(
        7,
        "gradients/0/conv",
        "`torch.maximum(x, 0)` for ReLU: half the gradient where x is exactly 0",
        "`F.relu`",
    ),
    "Epsilon1e8": Pitfall(8, "after/0/weights", "`torch.optim.Adam` with its own epsilon, 1e-8", "`KerasAdam`"),
    "NoEpsilonHat": Pitfall(
        8,
        "after/0/weights",
        "`torch.optim.Adam(eps=1e-7)`: epsilon added after the correction of v, not before",
        "`KerasAdam`",
    ),
    "ExactBetas": Pitfall(
        8,
        "after/0/weights",
        "betas not rounded to float32 in the correction, in float64",
        "`KerasAdam`; of no effect in float32",
    ),
    "GradientClipping": Pitfall(
        8, "saturated: after/0/adam_m", "gradients clipped to a norm of 10", "Keras clips only if `clipnorm` is given"
    ),
    "WeightDecay": Pitfall(8, "after/0/weights", "weight decay of 0.004", "Keras' Adam has none"),
    "AnotherLearningRate": Pitfall(8, "after/0/weights", "a learning rate that is 1 % higher", "0.001"),
    "LearningRateDecay": Pitfall(
        9, "long: loss", "a schedule: 1 % less every 30 steps", "Keras' `fit` has no schedule unless one is given"
    ),
    "AverageOfBatchAverages": Pitfall(
        10,
        "short: history/loss",
        "an epoch's loss averaged over batches, the short last one like the others",
        "average over images (pass `batch_size` to `self.log`)",
    ),
    "ClassByClass": Pitfall(
        11,
        "test accuracy",
        "images in the order of their classes, as folders hold them, shuffled within each",
        "shuffle all images together",
    ),
    "BatchSizePerDevice": Pitfall(
        12,
        "2 devices: short: loss",
        "the batch size meant per device, as Lightning does: a step sees as many times more images",
        "Keras' batch size is that of the whole step: share each batch out",
    ),
    "PaddedEvaluation": Pitfall(
        12,
        "3 devices: thirds: probabilities",
        "the test set padded with images counted twice, as `DistributedSampler` does where it does not divide",
        "share the images out unevenly, and sum over devices",
    ),
    "MomentsForgotten": Pitfall(
        13,
        "1 device: short: loss[11]",
        "a resumed training begins with Adam's m and v at zero: only the weights were saved",
        "save the optimizer's state too: `trainer.save_checkpoint`, not `torch.save(model.state_dict())`",
    ),
    "StepsForgotten": Pitfall(
        13,
        "1 device: short: loss[11]",
        "a resumed training counts Adam's steps from zero: its bias correction begins anew",
        "keep what an optimizer counts in its `state` or `param_groups`, which a checkpoint holds",
    ),
    "EpochFromItsStart": Pitfall(
        13,
        "1 device: short: loss[10]",
        "a training that is resumed within an epoch sees the first batches of it again",
        "give the loader `state_dict` and `load_state_dict`, which Lightning calls",
    ),
    "AveragesForgotten": Pitfall(
        13,
        "1 device: short: history/loss",
        "the report of a resumed epoch covers the batches after the interruption alone",
        "put the running sums into the checkpoint",
    ),
}


@dataclass(frozen=True)
class MutantResult:
    """Where the ladder stopped a mistake, and what it named there; rung 0 for one that climbed to the top."""

    name: str
    rung: int
    what: str
    difference: float
    tolerance: float

    @property
    def as_predicted(self) -> bool:
        return self.rung == PITFALLS[self.name].rung and PITFALLS[self.name].named in self.what


def climb_with_mutants(sides: Sides, numbers: Collection[int]) -> Iterator[MutantResult]:
    """Climb in float64 with every mistake that one of the rungs has to stop: the usual rungs, or the one of a flag."""
    for name, pitfall in PITFALLS.items():
        if pitfall.rung in numbers:
            yield climb_with_mutant(sides, name)


def climb_with_mutant(sides: Sides, name: str) -> MutantResult:
    """Climb in float64 with a mistake until the ladder stops it."""
    rung = PITFALLS[name].rung
    port = sides.of(f"lit_mnist.mutants:{name}", steps=STEPS, seeds=2)
    return result_of(name, climb(port, USUAL if rung in USUAL else [rung], dtype="float64"))


def result_of(name: str, verdicts: Iterator[Verdict]) -> MutantResult:
    """Return where a climb ends: at the first rung that does not hold, or at the top."""
    for verdict in verdicts:
        if not verdict.holds:
            shown = verdict.shown
            return MutantResult(name, verdict.rung.number, shown.what, shown.difference, shown.tolerance)
    return MutantResult(name, 0, "nothing", 0, 0)
