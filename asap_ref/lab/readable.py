"""Attention in its readable form, as an argument of a model: what Sinkhorn costs as the literature runs it."""

from __future__ import annotations

from asap_ref.method import attention as readable
from asap_ref.model.mechanism import Attention


class ReadableAttention(Attention):
    """The attention of that name as `asap_ref.method` defines it; Sinkhorn is the loop in the log domain."""

    def __call__(self, q, k, v, **masks):
        """Return the attention output (..., n, p)."""
        return getattr(readable, f"{self.name}_attention")(q, k, v, **self.settings, **masks)

    def vjp(self, q, k, v, **masks):
        """Return (out, vjp)."""
        return getattr(readable, f"{self.name}_attention_vjp")(q, k, v, **self.settings, **masks)
