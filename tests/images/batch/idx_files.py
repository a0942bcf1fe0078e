"""idx files of images whose digit the brightest-of-ten model knows."""

import struct

import numpy as np


def images(digits: list[int]) -> bytes:
    """An idx3 file of images that the brightest-of-ten model takes for these digits."""
    pixels = np.zeros((len(digits), 784), np.uint8)
    pixels[np.arange(len(digits)), digits] = 255
    return struct.pack(">4I", 0x0803, len(digits), 28, 28) + pixels.tobytes()


def labels(digits: list[int]) -> bytes:
    return struct.pack(">2I", 0x0801, len(digits)) + bytes(digits)
