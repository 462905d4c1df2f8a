"""What the attention of a model is given: queries, keys, values and masks of a layer, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

from asap_ref.model.mechanism import Attention


@dataclass(frozen=True)
class Recorder:
    """An attention that also keeps what it was called with."""

    attention: Attention
    calls: list  # of (q, k, v, query_mask, key_mask)

    def __call__(self, q, k, v, *, query_mask=None, key_mask=None):
        """Attend as the wrapped attention does, and keep the arguments."""
        self.calls.append((q, k, v, query_mask, key_mask))
        return self.attention(q, k, v, query_mask=query_mask, key_mask=key_mask)


def check_model(model, name, function):
    """Raise unless this is a model whose attention can be exchanged."""
    if not hasattr(model, "with_attention"):
        raise TypeError(f"{function}: {name} must be a Transformer, got {type(model).__name__}")


def record(model, batch):
    """Run a model on one batch: its (q, k, v, query_mask, key_mask), one for each layer.

    A batch is NumPy inputs. The masks, None for images, are those of padded text.

    Examples
    --------
    >>> import numpy as np
    >>> from asap_ref import Architecture, Transformer
    >>> model = Transformer.create(Architecture(), Attention("softmax"))
    >>> [call[0].shape for call in record(model, np.zeros((3, 8, 8)))]
    [(3, 12, 17, 4), (3, 12, 17, 4)]
    """
    calls = []
    model.with_attention(*(Recorder(attention, calls) for attention in model.attentions))(model.place(batch))
    return calls


def activations(model, layer, exchanged, batch):
    """Queries and keys of one layer on one batch, with their masks if there are any.

    Keys are in the role of queries if ``exchanged``, for one-sided attention.
    """
    q, k, _, query_mask, key_mask = record(model, batch)[layer]
    if exchanged:
        q, k, query_mask, key_mask = k, q, key_mask, query_mask
    return (q, k) if query_mask is None and key_mask is None else (q, k, query_mask, key_mask)
