"""What a model may be given on the host: inputs of the kind that its architecture reads, and labels, its classes.

The kind is the architecture's: by their dtype alone images of bytes would be taken for text.
"""

from __future__ import annotations

import numpy as np

from asap_ref.model.embedding import KINDS
from asap_ref.support.arrays import is_array
from asap_ref.support.trees import named_leaves


def check_host_inputs(inputs, architecture, function):
    """Raise unless these are NumPy inputs, an array or `Sequences`, of the kind that the architecture reads."""
    arrays = [x for _, x in named_leaves("inputs", inputs)]
    if not arrays or not all(isinstance(x, np.ndarray) and is_array(x) for x in arrays):
        kind = type(arrays[0] if len(arrays) == 1 else inputs).__name__
        ways = {
            "MaskedArray": "its mask would be lost, so fill it",
            "list": "use numpy.asarray, or Sequences.of where lengths differ",
        }
        raise TypeError(f"{function}: inputs must be a NumPy array, got {kind}; {ways.get(kind, 'use to_numpy')}")
    KINDS[architecture.kind].check(inputs, architecture)


def check_labels(labels, count, n_classes, function):
    """Raise unless these are NumPy labels (count,), integers below the number of classes, at least one."""
    if not isinstance(labels, np.ndarray) or not is_array(labels):
        way = "numpy.asarray" if isinstance(labels, list) else "to_numpy"
        raise TypeError(f"{function}: labels must be a NumPy array, got {type(labels).__name__}; use {way}")
    if labels.shape[:1] != (count,) or not count:
        got = len(labels) if labels.ndim else 1
        raise ValueError(f"{function}: {count} inputs and {got} labels; expected as many, at least one")
    if labels.ndim != 1:
        raise ValueError(f"{function}: labels has shape {labels.shape}, expected ({count},), a class each")
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{function}: labels must be integers, got {labels.dtype}; "
            "names, labels = numpy.unique(labels, return_inverse=True) numbers the classes"
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"{function}: labels lie from {labels.min()} to {labels.max()}, expected 0 to {n_classes - 1}, the classes "
            "of the model"
        )
