"""Every tolerance of the parity ladder, with where it comes from.

Differences are the largest absolute difference of any element at any step. NaN equals nothing.
"""

# Rungs 5 to 10 in float64. Measured over the documented 6,000 steps: see the README's table; a prototype reached
# 1.1e-14. Adam with eps = 1e-7 but without epsilon hat differs by 1.7e-4 in the loss of the second step.
FLOAT64 = 1e-12

# The same rungs in float32: our error against Keras' float64 run, in units of Keras' own; an error is the root mean
# square over a tensor, relative to the tensor's own, and of all tensors of a training the largest counts. The largest
# element alone is a matter of chance: over 8 seeds of 60 steps it gave 0.4 to 4.3 for the weights, where the root mean
# square gave 0.9 to 1.3. (Adam moves a weight whose gradient is next to nothing by the sign of a rounding error.)
# Measured with it: up to 1.6, for Adam's v after 60 steps. There is a reason: torch multiplies v by float32(0.999),
# which is 1.3e-8 too large, where Keras adds (g^2 - v) * 0.001; after 3,000 equal gradients torch's v is off by 3e-5
# and Keras' by 3e-7.
FLOAT32_RATIO = 2.0

# The same rungs in float32, of another model: the first steps that are compared. After some hundred, what a rounding
# does to a ReLU is a matter of chance, and so how far either side is from float64.
BRIEF = 30

# Keras on another backend, in float32: how many times as far from TensorFlow's float64 run as TensorFlow's float32 run
# it may be to be held against a port. Beyond, it computes something else, as where probabilities are clipped before
# their logarithm: 1e6 was measured there, and up to 1.7 elsewhere.
OTHER_COMPUTATION = 100

# Rung 3: the Kolmogorov-Smirnov distance of the two sides' draws, in units of sqrt((n + m) / (n m)). Of one
# distribution, one pair of samples in a thousand is further apart: 2 exp(-2 * 1.95^2) = 0.001. Over 20 seeds, torch's
# own initialisation is at 350 for the hidden kernel.
KOLMOGOROV_SMIRNOV = 1.95

# Rung 3, too: how many draws of one side lie beyond all of the other; more than 15 with probability 2^-15. The
# distance hardly sees a bound that is a little wider: of torch's convolution kernel, 0.333 instead of 0.309, it sees
# nothing, and some 80 draws of 1,080 lie beyond.
DRAWN_BEYOND = 15

# Rung 3, too: the share of a kernel's draws that come again in another kernel, another unit or with the next seed. By
# chance 0.13; of a kernel that is drawn from the same stream as another, all.
DRAWN_AGAIN = 0.5

# Rung 11: margins of equivalence of the means over seeds, fixed after a first 20 runs of Keras, before the recorded
# ones. 0.25 percentage points of accuracy are 1.4 standard deviations of a run among those 20 (0.18 points); 0.01
# nats are as much of the loss (0.0073).
MARGINS = {"test_accuracy": 0.0025, "test_loss": 0.010}

# Of another model: the same, in standard deviations of a run of Keras. With 20 trainings a side, equal means pass in 99
# cases of 100, and means that are a margin apart in 5.
MARGIN_IN_SPREADS = 1.4

# Rung 11, too: the probability with which equal spreads are taken for different ones.
SPREAD_LEVEL = 0.001
