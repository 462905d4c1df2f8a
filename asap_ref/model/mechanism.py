"""Attention as an argument of a model: a name and its settings, forward and backward, in the fast forms.

A mechanism is one line of a table that says all of it; nothing else asks for a mechanism by its name. To add one,
write its forward and its VJP, and a line.

Inside a model the slices of sliced-transport attention are the coordinates of the head, which the projections
that make queries and keys learn; it takes no directions there.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asap_ref.calibration.amortizer import Amortizer
from asap_ref.extensions.mixed_heads import mixed_attention, mixed_attention_vjp
from asap_ref.fast.attention import (
    asap_attention,
    asap_attention_vjp,
    sinkhorn_attention,
    sinkhorn_attention_vjp,
    softmax_attention,
    softmax_attention_vjp,
)
from asap_ref.rivals.dual_softmax import dual_softmax_attention_vjp
from asap_ref.rivals.dual_softmax import fast_dual_softmax_attention as dual_softmax_attention
from asap_ref.rivals.initial_duals import fast_initial_attention as initial_attention
from asap_ref.rivals.initial_duals import initial_attention_vjp
from asap_ref.rivals.one_sided import fast_one_sided_attention as one_sided_attention
from asap_ref.rivals.one_sided import one_sided_attention_vjp
from asap_ref.rivals.over_relaxed import fast_over_relaxed_attention as over_relaxed_attention
from asap_ref.rivals.over_relaxed import over_relaxed_attention_vjp
from asap_ref.rivals.sliced_attention import sliced_attention, sliced_attention_vjp
from asap_ref.support import trees
from asap_ref.support.settings import check_choice, check_settings


@dataclass(frozen=True)
class Mechanism:
    """All that is to be known of an attention: ``forward(q, k, v, **settings, query_mask, key_mask)``, and more."""

    forward: Callable
    vjp: Callable
    predicts: str | None = None  # "query" or "key": the side whose dual its amortizer predicts
    teaches: bool = False  # whether amortizers are calibrated against it: it has n_iter and epsilon


MECHANISMS = {
    "softmax": Mechanism(softmax_attention, softmax_attention_vjp),
    "sinkhorn": Mechanism(sinkhorn_attention, sinkhorn_attention_vjp, teaches=True),
    "asap": Mechanism(asap_attention, asap_attention_vjp, predicts="query"),
    "one-sided": Mechanism(one_sided_attention, one_sided_attention_vjp, predicts="key"),
    "sliced": Mechanism(sliced_attention, sliced_attention_vjp),
    "initial": Mechanism(initial_attention, initial_attention_vjp),
    "over-relaxed": Mechanism(over_relaxed_attention, over_relaxed_attention_vjp),
    "dual-softmax": Mechanism(dual_softmax_attention, dual_softmax_attention_vjp),
    "mixed": Mechanism(mixed_attention, mixed_attention_vjp),
}
GIVEN = ("q", "k", "v", "directions", "query_mask", "key_mask")  # parameters that are no settings


@functools.cache
def settings_of(mechanism):
    """{setting: its default, or `inspect.Parameter.empty`} of a mechanism."""
    found = inspect.signature(mechanism.forward).parameters.values()
    return {p.name: p.default for p in found if p.name not in GIVEN}


@dataclass(frozen=True, eq=False)
class Attention(trees.EqualByValue):
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
        check_choice(self.name, "name", "Attention", tuple(MECHANISMS))
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"Attention: settings must be a dict, got {type(self.settings).__name__}")
        known = settings_of(self.mechanism)
        unknown = [name for name in self.settings if name not in known]
        missing = [name for name, default in known.items() if default is inspect.Parameter.empty]
        missing = [name for name in missing if name not in self.settings]
        if unknown or missing:
            wrong = f"has no setting {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(f"Attention: {self.name} attention {wrong}; its settings are: {', '.join(known)}")
        settings = {name: x.item() if isinstance(x, np.generic) else x for name, x in self.settings.items()}
        check_settings("Attention", settings)
        object.__setattr__(self, "settings", settings)

    @property
    def mechanism(self):
        """The line of the table."""
        return MECHANISMS[self.name]

    def __call__(self, q, k, v, *, query_mask=None, key_mask=None) -> Any:
        """Return the attention output (..., n, p)."""
        return self.mechanism.forward(q, k, v, **self.settings, query_mask=query_mask, key_mask=key_mask)

    def vjp(self, q, k, v, *, query_mask=None, key_mask=None) -> tuple[Any, Callable[[Any], tuple[Any, Any, Any]]]:
        """Return (out, vjp) with ``vjp(d_out) -> (dq, dk, dv)``."""
        return self.mechanism.vjp(q, k, v, **self.settings, query_mask=query_mask, key_mask=key_mask)

    def setting(self, name):
        """Return the value of a setting, the default where it was not given."""
        return self.settings.get(name, settings_of(self.mechanism)[name])

    def by_head(self, n_heads):
        """List the (attention, heads) that attend: the parts, or itself for all heads."""
        return [*self.settings["parts"]] if "parts" in self.settings else [(self, range(n_heads))]

    # ------------------------------------------------------------------------------------------------ files

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


def fingerprint(attentions):
    """JSON-ready words by which a checkpoint knows the attentions it was made with again."""
    told = {"attention": [repr(attention) for attention in attentions]}
    amortizers = [x for attention in attentions for x in trees.leaves(attention.state()[0])]
    if amortizers:  # which are too long to print
        told["amortizers"] = [zlib.crc32(np.ascontiguousarray(x)) for x in amortizers]
    return told
