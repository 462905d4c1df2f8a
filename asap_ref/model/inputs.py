"""What a model may be given: images or token ids, as the architecture says, and labels that are its classes."""

from __future__ import annotations

import numpy as np

from asap_ref.support.arrays import array_namespace, as_indices, is_array


def checked_inputs(inputs, architecture, attentions):
    """Inputs that fit; token ids as integers by which their module indexes."""
    xp, shape, got = array_namespace(inputs), tuple(inputs.shape), f"{inputs.dtype} of shape {tuple(inputs.shape)}"
    if len(attentions) != architecture.n_layers:
        raise ValueError(f"transformer: {len(attentions)} attentions for {architecture.n_layers} layers")
    if architecture.vocabulary is None:
        if xp.isdtype(inputs.dtype, "integral"):
            raise TypeError(f"transformer: inputs must be real floating point images, got {got}")
        if shape[1:] != tuple(architecture.image):
            raise ValueError(f"transformer: inputs has shape {shape}, expected (batch, *{architecture.image})")
        return inputs
    if not xp.isdtype(inputs.dtype, "integral"):
        raise TypeError(f"transformer: inputs must be integer token ids, got {got}")
    if len(shape) != 2 or not 1 <= shape[1] <= architecture.length:
        raise ValueError(
            f"transformer: inputs has shape {shape}, expected (batch, n) with n from 1 to {architecture.length}"
        )
    inputs = as_indices(inputs)
    check_ids(inputs, architecture.vocabulary)
    return inputs


def check_ids(ids, vocabulary):
    """Raise unless token ids, of any module, lie in a vocabulary of that size."""
    xp = array_namespace(ids)
    if bool(xp.any((ids < 0) | (ids >= vocabulary))):
        raise ValueError(
            f"transformer: inputs holds ids from {int(xp.min(ids))} to {int(xp.max(ids))}, expected 0 "
            f"(padding) to {vocabulary - 1}, the vocabulary less one"
        )


def check_host_inputs(inputs, architecture, function="transformer"):
    """Raise unless these are NumPy inputs of the kind that the architecture takes: text or images.

    By the dtype alone images of bytes would be taken for text, and ids beyond an integer of a device for others.
    """
    if not isinstance(inputs, np.ndarray) or not is_array(inputs):  # a masked one would lose its mask
        raise TypeError(f"{function}: inputs must be a NumPy array, got {type(inputs).__name__}; use to_numpy")
    is_text, kind = architecture.vocabulary is not None, inputs.dtype.kind
    if is_text and kind not in "iu":
        raise TypeError(f"{function}: inputs must be integer token ids, got {inputs.dtype}")
    if not is_text and kind != "f":
        raise TypeError(
            f"{function}: inputs must be real floating point images, got {inputs.dtype}; scale them as those that the "
            "model was trained on, and convert them to float32"
        )
    if is_text and inputs.size:
        check_ids(inputs, architecture.vocabulary)


def check_labels(labels, count, n_classes, function):
    """Raise unless these are NumPy labels (count,), integers below the number of classes, at least one."""
    if not isinstance(labels, np.ndarray) or not is_array(labels):
        raise TypeError(f"{function}: labels must be a NumPy array, got {type(labels).__name__}; use to_numpy")
    if labels.shape[:1] != (count,) or not count:
        got = len(labels) if labels.ndim else 1
        raise ValueError(f"{function}: {count} inputs and {got} labels; expected as many, at least one")
    if labels.ndim != 1:
        raise ValueError(f"{function}: labels has shape {labels.shape}, expected ({count},), a class each")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{function}: labels must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"{function}: labels lie from {labels.min()} to {labels.max()}, expected 0 to {n_classes - 1}, the classes "
            "of the model"
        )
