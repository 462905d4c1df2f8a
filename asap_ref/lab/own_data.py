"""Data of one's own, from files: arrays X and y in an .npz, or texts and labels in a .csv or .tsv.

    .npz         X (N, n, features), y (N,) labels of any kind, and where sequences are padded mask (N, n) or
                 lengths (N,); y may be missing where only predictions are wanted
    .csv, .tsv   a first line that names the columns, among them text and, likewise, label

A tenth of the examples, drawn once and for all, is the test split: the same file is always split alike. Labels may be
numbers or words: the model keeps them as its classes, in sorted order, and a model on text its words.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asap_ref.lab.datasets import Dataset
from asap_ref.model.sequences import Sequences
from asap_ref.model.text import build_vocabulary, encode

TABLES = {".csv": ",", ".tsv": "\t"}
ARRAYS = ("X", "y", "mask", "lengths")


@dataclass(frozen=True)
class Examples:
    """What a file holds: vectors, maybe with a mask, or texts; and labels, or None."""

    inputs: np.ndarray | Sequences | list[str]
    labels: np.ndarray | None

    @property
    def is_text(self):
        """Whether these are texts."""
        return isinstance(self.inputs, list)


def read(path):
    """Read the examples of a file.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it does not hold what the module says.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/own.npz", X=np.zeros((3, 5, 2)), y=["no", "yes", "no"], lengths=[5, 2, 3])
    ...     read(f"{folder}/own.npz").inputs
    <Sequences: 3 of at most 5 tokens, 2 features>
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix not in (*TABLES, ".npz"):
        raise ValueError(
            f"{path}: expected an .npz with arrays X and y, or a .csv or .tsv with columns text and label"
        )
    inputs, labels = read_table(path) if path.suffix in TABLES else read_arrays(path)
    if not len(inputs):
        raise ValueError(f"{path} holds no examples")
    if labels is not None and labels.shape != (len(inputs),):
        raise ValueError(f"{path}: y has shape {labels.shape}, expected ({len(inputs)},), a label for each of X")
    return Examples(inputs, labels)


def read_arrays(path):
    """X, as Sequences if there is a mask, and y of an .npz."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz of plain arrays: {error}") from error
    unknown = sorted(set(arrays) - set(ARRAYS))
    if unknown or "X" not in arrays:
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} holds {found}; expected X, and any of {', '.join(ARRAYS[1:])}, no others")
    X, mask = arrays["X"], arrays.get("mask")
    if X.ndim != 3 or X.dtype.kind not in "fiub":
        way_out = "; where each token is one number, save X[..., None]" if X.ndim == 2 else ""
        raise ValueError(
            f"{path}: X is {X.dtype} of shape {X.shape}, expected numbers (N, tokens, features){way_out}"
        )
    if mask is not None and "lengths" in arrays:
        raise ValueError(f"{path} holds mask and lengths, expected one of them")
    if "lengths" in arrays:
        lengths = arrays["lengths"]
        if lengths.shape != X.shape[:1] or lengths.dtype.kind not in "iu" or lengths.max(initial=0) > X.shape[1]:
            raise ValueError(
                f"{path}: lengths is {lengths.dtype} of shape {lengths.shape}, expected ({len(X)},) whole numbers "
                f"of at most {X.shape[1]}"
            )
        mask = np.arange(X.shape[1]) < lengths[:, None]
    X = X.astype(np.float32)
    if mask is None:
        return X, arrays.get("y")
    if mask.shape != X.shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"{path}: mask is {mask.dtype} of shape {mask.shape}, expected bool of shape {X.shape[:2]}"
        )
    return Sequences(X, mask), arrays.get("y")


def read_table(path):
    """Texts and labels of a .csv or .tsv."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=TABLES[path.suffix]))
    names = list(rows[0]) if rows else []
    if "text" not in names:
        raise ValueError(f"{path}: its first line names the columns {names}, expected text, and label")
    if None in names or any(None in (row["text"], row.get("label", "")) for row in rows):
        raise ValueError(f"{path}: a line has more or fewer fields than the first, which names {names}")
    labels = np.asarray([row["label"] for row in rows]) if "label" in names else None
    return [row["text"] for row in rows], labels


# ------------------------------------------------------------------------------------------------ for a model


def kept_for_testing(count):
    """Mark a tenth of so many examples, one at least, and never all: NumPy booleans (count,), always the same."""
    kept = np.zeros(count, bool)
    kept[np.random.default_rng(0).permutation(count)[: min(max(1, count // 10), count - 1)]] = True
    return kept


def to_train(path, *, vocabulary, length):
    """Data set of a file whose labels say the classes, and for texts whose training part says the vocabulary."""
    examples = read(path)
    if examples.labels is None:
        raise ValueError(f"{path} has no labels to train on: y in an .npz, a column label in a .csv or .tsv")
    classes = tuple(map(str, np.unique(examples.labels)))
    if len(classes) < 2:
        raise ValueError(f"{path}: every label is {classes[0]!r}, expected two kinds at least")
    words = ()
    if examples.is_text:
        train = ~kept_for_testing(len(examples.inputs))
        words = build_vocabulary(
            [text for text, picked in zip(examples.inputs, train, strict=True) if picked], vocabulary
        )
    return split(path, examples, words, classes, length)


def for_model(path, model):
    """Data set of a file as a model reads it: with its words and its classes."""
    examples, kind = read(path), model.architecture.kind
    if examples.is_text != (kind == "text") or (examples.is_text and not model.words):
        holds = "texts" if examples.is_text else "arrays"
        lacks = " and was saved without its words" if examples.is_text and kind == "text" else ""
        raise ValueError(f"{path} holds {holds}, but the model reads {kind}{lacks}")
    return split(path, examples, model.words, model.classes, model.architecture.length)


def split(path, examples, words, classes, length):
    """Make the data set; labels that are not there are -1."""
    inputs = encode(examples.inputs, words, length) if examples.is_text else examples.inputs
    labels = numbered(path, examples.labels, classes, len(inputs))
    test = kept_for_testing(len(inputs))
    parts = (inputs[~test], labels[~test], inputs[test], labels[test])
    return Dataset(Path(path).name, *parts, classes, words)


def all_of(data):
    """All inputs and labels of a data set of a file, in the order of the file: (inputs, labels)."""
    test = kept_for_testing(len(data.train_labels) + len(data.test_labels))
    order = np.argsort(np.concatenate([np.flatnonzero(~test), np.flatnonzero(test)]))
    labels = np.concatenate([data.train_labels, data.test_labels])[order]
    if isinstance(data.train_inputs, Sequences):
        parts = [(x.vectors, x.mask) for x in (data.train_inputs, data.test_inputs)]
        return Sequences(*(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))), labels
    return np.concatenate([data.train_inputs, data.test_inputs])[order], labels


def numbered(path, labels, classes, count):
    """Number of each label's class: (N,) integers."""
    if labels is None:
        return np.full(count, -1)
    number = {name: i for i, name in enumerate(classes)}
    found = [number.get(str(label), -1) for label in labels]
    if not number and np.issubdtype(
        labels.dtype, np.integer
    ):  # a model that was not told the names of its classes
        return labels
    if not number:
        raise ValueError(
            f"{path}: y is {labels.dtype}, but the model has no names of classes; give y as the numbers that it was "
            "trained with, or create it with classes=names"
        )
    if -1 in found:
        raise ValueError(
            f"{path}: label {str(labels[found.index(-1)])!r} is none of the model's classes: {', '.join(classes)}"
        )
    return np.asarray(found)


def warn_of_sizes(inputs):
    """Say on stderr where features are far from unit size, at which training works best."""
    vectors = inputs.vectors[inputs.mask] if isinstance(inputs, Sequences) else inputs
    size = np.sqrt(np.mean(np.square(vectors.reshape(-1, vectors.shape[-1]), dtype=np.float64), axis=0))
    if not np.all(np.isfinite(size)):
        raise ValueError("X contains NaN or infinity; pass finite values (padding belongs in mask or lengths)")
    if size.max() > 10 or size.max() < 0.1:
        print(
            f"features of X are of size {size.min():.2g} to {size.max():.2g} (root mean square); training works best "
            "near 1: subtract the mean and divide by the standard deviation",
            file=sys.stderr,
        )


def table_of_predictions(logits, classes):
    """Lines of label and probability, with the names of the columns on top."""
    logits = logits - logits.max(-1, keepdims=True)
    probability = 1 / np.exp(logits.astype(np.float64)).sum(-1)  # of the largest
    names = classes or tuple(map(str, range(logits.shape[-1])))
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["label", "probability"])
    lines.writerows([names[i], f"{p:.4f}"] for i, p in zip(logits.argmax(-1), probability, strict=True))
    return out.getvalue()
