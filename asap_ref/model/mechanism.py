"""Attention as an argument of a model: a name and its settings, forward and backward, in the fast forms.

Inside a model the slices of sliced-transport attention are the coordinates of the head, which the projections
that make queries and keys learn; it takes no directions there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

from asap_ref.extensions.mixed import mixed_attention, mixed_attention_vjp
from asap_ref.fast.attention import (
    asap_attention,
    asap_attention_vjp,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    softmax_attention,
    softmax_attention_vjp,
)
from asap_ref.method.amortizer import Amortizer
from asap_ref.rivals.initial_duals import fast_initial_attention as initial_attention
from asap_ref.rivals.initial_duals import initial_attention_vjp
from asap_ref.rivals.one_sided import fast_one_sided_attention as one_sided_attention
from asap_ref.rivals.one_sided import one_sided_attention_vjp
from asap_ref.rivals.sliced_attention import sliced_attention, sliced_attention_vjp
from asap_ref.support.settings import check_choice, check_settings

FORMS = {
    "softmax": (softmax_attention, softmax_attention_vjp),
    "sinkhorn": (sinkhorn_attention, sinkhorn_attention_vjp),
    "asap": (asap_attention, asap_attention_vjp),
    "sliced": (sliced_attention, sliced_attention_vjp),
    "initial": (initial_attention, initial_attention_vjp),
    "one-sided": (one_sided_attention, one_sided_attention_vjp),
    "mixed": (mixed_attention, mixed_attention_vjp),
}


@functools.cache
def settings_of(name):
    """(names of all settings, of those without a default) of a mechanism."""
    given = ("q", "k", "v", "directions", "query_mask", "key_mask")
    found = [p for p in inspect.signature(FORMS[name][0]).parameters.values() if p.name not in given]
    return tuple(p.name for p in found), tuple(p.name for p in found if p.default is p.empty)


@dataclass(frozen=True)
class Attention:
    """An attention with its settings, to be handed to a model: ``Attention("sinkhorn", {"n_iter": 10})``.

    Calling it runs the forward pass; ``.vjp`` also gives the backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.zeros((1, 2, 3))
    >>> Attention("softmax")(q, q, np.ones((1, 2, 1))).shape
    (1, 2, 1)
    """

    name: str
    settings: Mapping = field(default_factory=dict)

    def __post_init__(self):
        check_choice(self.name, "name", "Attention", tuple(FORMS))
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"Attention: settings must be a dict, got {type(self.settings).__name__}")
        known, required = settings_of(self.name)
        unknown = [name for name in self.settings if name not in known]
        missing = [name for name in required if name not in self.settings]
        if unknown or missing:
            wrong = f"has no setting {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(f"Attention: {self.name} attention {wrong}; its settings are: {', '.join(known)}")
        check_settings("Attention", dict(self.settings))

    def __call__(self, q, k, v, *, query_mask=None, key_mask=None):
        """Return the attention output (..., n, p)."""
        forward, _ = FORMS[self.name]
        return forward(q, k, v, **self.settings, query_mask=query_mask, key_mask=key_mask)

    def vjp(self, q, k, v, *, query_mask=None, key_mask=None):
        """Return (out, vjp) with ``vjp(d_out) -> (dq, dk, dv)``."""
        _, forward_vjp = FORMS[self.name]
        return forward_vjp(q, k, v, **self.settings, query_mask=query_mask, key_mask=key_mask)

    def state(self):
        """(nested dict of arrays, JSON-ready name and settings), from which `from_state` rebuilds the attention."""
        arrays, settings = {}, dict(self.settings)
        if "amortizer" in settings:
            arrays["amortizer"], settings["amortizer"] = settings["amortizer"].state()
        if "parts" in settings:
            saved = []
            for i, (attention, heads) in enumerate(settings["parts"]):
                arrays[f"part{i}"], part = attention.state()
                saved.append([part, list(heads)])
            settings["parts"] = saved
        return arrays, {"name": self.name, "settings": settings}

    @classmethod
    def from_state(cls, arrays, saved):
        """Rebuild an attention from its `state`."""
        settings = dict(saved["settings"])
        if "amortizer" in settings:
            settings["amortizer"] = Amortizer.from_state(arrays["amortizer"], settings["amortizer"])
        if "parts" in settings:
            settings["parts"] = tuple(
                (cls.from_state(arrays.get(f"part{i}", {}), part), tuple(heads))
                for i, (part, heads) in enumerate(settings["parts"])
            )
        return cls(saved["name"], settings)
