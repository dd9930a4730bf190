"""Every tolerance of the parity ladder, with where it comes from.

Differences are the largest absolute difference of any element at any step. NaN equals nothing.
"""

# Rungs 5 to 10 in float64. Measured over the documented 6,000 steps: see the README's table; a prototype reached
# 1.1e-14. Adam with eps = 1e-7 but without epsilon hat differs by 1.7e-4 in the loss of the second step.
FLOAT64 = 1e-12

# The same rungs in float32: our largest error against Keras' float64 run, in units of Keras' own, each error relative
# to the largest element of its tensor. Taken tensor by tensor and step by step, six numbers of one batch reached 4.6 by
# chance; the gradient of the loss over the 10,000 test images of a trained model is at 1.3 (torch 2.9e-7, TensorFlow
# 2.2e-7), since torch goes through the logarithm of the probabilities.
FLOAT32_RATIO = 2.0

# Rung 3: the Kolmogorov-Smirnov distance from the Glorot uniform distribution, in units of 1 / sqrt(n). One sample in
# a thousand is further off: 2 exp(-2 * 1.95^2) = 0.001. Over 20 seeds, torch's own initialisation is at 46 for the
# output kernel, and beyond the bound of the distribution for the convolution's.
KOLMOGOROV_SMIRNOV = 1.95

# Rung 11: margins of equivalence of the means over seeds, stated before the runs were recorded. 0.25 percentage points
# of accuracy are 1.4 standard deviations of a run as 20 seeds of Keras first showed it (0.18 points); 0.01 nats are as
# much of the loss (0.0073).
MARGINS = {"test_accuracy": 0.0025, "test_loss": 0.010}
