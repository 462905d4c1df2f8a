"""The real data sets, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """Inputs and integer labels, split into training and test; NumPy arrays."""

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def load_digits():
    """Load scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, ten classes.

    The split is fixed (a fifth of each class for testing), whatever seed a model is trained with.

    Returns
    -------
    Dataset
        Images (N, 8, 8) float32 in [-1, 1].

    Notes
    -----
    Source: the test set of the UCI "Optical Recognition of Handwritten Digits" data, which scikit-learn ships.

    Examples
    --------
    >>> digits = load_digits()
    >>> digits.train_inputs.shape, digits.test_inputs.shape
    ((1437, 8, 8), (360, 8, 8))
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    images = (digits.images / 8 - 1).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return Dataset("digits", train_x, train_y, test_x, test_y, tuple(map(str, digits.target_names)))


def shift(images, rng):
    """Move each image by up to one pixel each way, the border repeated: augmentation for small data sets.

    Examples
    --------
    >>> shift(np.eye(3, dtype=np.float32)[None], np.random.default_rng(0)).shape
    (1, 3, 3)
    """
    b, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = rng.integers(0, 3, size=(b, 1, 1)) + np.arange(height)[:, None]
    columns = rng.integers(0, 3, size=(b, 1, 1)) + np.arange(width)
    return padded[np.arange(b)[:, None, None], rows, columns]
