"""Text as token ids: a vocabulary, padding, and batches in which little is padded.

An id is a word's place in the vocabulary, plus two: 0 is padding, 1 any word that is not in the vocabulary.
Sequences are padded on the right. A batch is as long as its longest sequence, so an epoch is cut into batches of
like length. All of this runs on the host; inputs that are not integer (images) pass through unchanged.

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


# ------------------------------------------------------------------------------------------------------- batches

POOL = 16  # batches whose sequences are sorted by length together: more pad less, fewer mix better


def is_text(inputs):
    """Say whether inputs are token ids."""
    return np.issubdtype(inputs.dtype, np.integer)


def lengths(ids):
    """Tokens of each sequence up to the last one that is not padding: (N, n) -> (N,)."""
    return np.max(np.where(ids != PADDING, np.arange(1, ids.shape[1] + 1), 0), axis=1)


def trimmed(inputs):
    """Cut the columns that are padding in every sequence; one is always kept.

    Examples
    --------
    >>> trimmed(np.asarray([[4, 2, 0, 0], [3, 0, 0, 0]]))
    array([[4, 2],
           [3, 0]])
    """
    return inputs[:, : max(1, lengths(inputs).max())] if is_text(inputs) else inputs


def batches(inputs, batch_size):
    """Indices of batches that go through all inputs once; texts from short to long."""
    order = np.argsort(lengths(inputs), kind="stable") if is_text(inputs) else np.arange(len(inputs))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def shuffled_batches(inputs, batch_size, rng):
    """Indices of the batches of an epoch, in random order.

    Texts are shuffled, sorted by length among the members of a pool of batches, cut, and the batches shuffled.

    Examples
    --------
    >>> ids = np.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    >>> [sorted(batch.tolist()) for batch in shuffled_batches(ids, 2, np.random.default_rng(0))]
    [[1, 4], [0, 3], [2, 5]]
    """
    order = rng.permutation(len(inputs))
    if not is_text(inputs):
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    length, found = lengths(inputs), []
    for i in range(0, len(order), POOL * batch_size):
        pool = order[i : i + POOL * batch_size]
        pool = pool[np.argsort(length[pool], kind="stable")]
        found += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    return [found[i] for i in rng.permutation(len(found))]
