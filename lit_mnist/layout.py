"""What weights are called in files, and their shapes in Keras' layout, whoever wrote them."""

LAYERS = ("conv", "pool", "flatten", "hidden", "output")
WEIGHTS = {
    "conv/kernel": (3, 3, 1, 6),  # H, W, I, O
    "conv/bias": (6,),
    "hidden/kernel": (1176, 128),  # (HWC), O
    "hidden/bias": (128,),
    "output/kernel": (128, 10),  # I, O
    "output/bias": (10,),
}
