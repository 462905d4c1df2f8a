"""Ours beyond the paper, a file each: more families of features, over-relaxation, heads of mixed mechanisms.

A new family is a file here and a line below. One of a single feature, |q|², which may then be asked for by name, as in
``fit_amortizer(batches, length=True)``:

>>> import numpy as np
>>> from dataclasses import dataclass
>>> from asap_ref.method.features import dual_features
>>> from asap_ref.support.family import FAMILIES, Family
>>> from asap_ref.support.masks import centred, keep_tokens, of_features
>>> from asap_ref.support.arrays import array_namespace
>>> @dataclass(frozen=True)
... class Length(Family, name="length"):
...     count = 1
...
...     def features_vjp(self, q, k, *, query_mask=None, key_mask=None):
...         xp, q, mask = array_namespace(q), keep_tokens(q, query_mask), of_features(query_mask)
...
...         def vjp(d_features):
...             return 2 * q * xp.matrix_transpose(centred(d_features, mask)), 0 * k, {}
...
...         return centred(xp.sum(q * q, axis=-1)[..., None, :], mask), vjp
>>> q, k = np.random.default_rng(0).standard_normal((2, 1, 5, 4))
>>> dual_features(q, k, [Length()]).shape
(1, 1, 5)
>>> del FAMILIES["length"]
"""

from asap_ref.extensions.cumulants import Cumulants
from asap_ref.extensions.moments import Moments
from asap_ref.extensions.one_pass import OnePass
from asap_ref.extensions.quadratic import Quadratic

__all__ = ["Cumulants", "Moments", "OnePass", "Quadratic"]
