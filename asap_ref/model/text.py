"""Text as token ids: a vocabulary, and padding on the right.

An id is a word's place in the vocabulary, plus two: 0 is padding, 1 any word that is not in the vocabulary.
All of this runs on the host.

Shapes: N sequences, n tokens at most -> ids (N, n).
"""

from __future__ import annotations

import numpy as np

PADDING, UNKNOWN = 0, 1
RESERVED = 2  # ids that are no words


# ------------------------------------------------------------------------------------------------- words and ids


def build_vocabulary(texts, size):
    """Find the most frequent words of texts, split at blanks: at most ``size - 2`` of them, in alphabetic order.

    Examples
    --------
    >>> build_vocabulary(["the bank raised the rate", "the rate fell"], 4)
    ('rate', 'the')
    """
    from sklearn.feature_extraction.text import CountVectorizer

    _check_texts("build_vocabulary", texts)

    counter = CountVectorizer(token_pattern=r"\S+", max_features=size - RESERVED)
    return tuple(counter.fit(texts).get_feature_names_out().tolist())


def encode(texts, vocabulary, length):
    """Token ids of the first ``length`` words of each text, padded with 0: (N, length) int32.

    Examples
    --------
    >>> encode(["the rate fell", "rate"], ("rate", "the"), 4)
    array([[3, 2, 1, 0],
           [2, 0, 0, 0]], dtype=int32)
    """
    _check_texts("encode", texts)
    number = {word: i + RESERVED for i, word in enumerate(vocabulary)}
    ids = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = text.lower().split()[:length]
        row[: len(words)] = [number.get(word, UNKNOWN) for word in words]
    return ids


def _check_texts(function, texts):
    if isinstance(texts, str):  # whose letters would be taken for texts
        raise TypeError(f"{function}: texts must be a list of strings, got one string; put it in a list")


def word_dropout(share):
    """Make an augmentation that replaces each word by the unknown one with probability ``share``.

    Examples
    --------
    >>> word_dropout(1.0)(np.asarray([[5, 3, 0]], np.int32), np.random.default_rng(0))
    array([[1, 1, 0]], dtype=int32)
    """

    def drop(ids, rng):
        dropped = (rng.random(ids.shape) < share) & (ids != PADDING)
        return np.where(dropped, np.asarray(UNKNOWN, ids.dtype), ids)

    return drop
