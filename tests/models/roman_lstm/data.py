"""Roman numerals and their values: a text to read and a number to tell."""

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

SYMBOLS = {"M": 1000, "CM": 900, "D": 500, "CD": 400, "C": 100, "XC": 90}
SYMBOLS |= {"L": 50, "XL": 40, "X": 10, "IX": 9, "V": 5, "IV": 4, "I": 1}
LETTERS = " IVXLCDM"  # token 0 pads
LENGTH = 15  # of 3888, MMMDCCCLXXXVIII


def load() -> tuple[Arrays, Arrays]:
    """Return ((x, y), (x_test, y_test)): tokens [N, 15] from 0 to 7, and values in thousands [N]."""
    numbers = np.random.default_rng(0).permutation(np.arange(1, 4000))
    x = np.array([[LETTERS.index(letter) for letter in numeral(number).rjust(LENGTH)] for number in numbers], "int32")
    y = (numbers / 1000).astype("float32")
    return (x[:3200], y[:3200]), (x[3200:], y[3200:])


def numeral(number: int) -> str:
    """Write a number from 1 to 3999 in Roman numerals."""
    text = ""
    for symbol, value in SYMBOLS.items():
        text += symbol * (number // value)
        number %= value
    return text
