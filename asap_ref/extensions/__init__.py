"""Ours beyond the paper, a file each: more families of features, and heads with mechanisms of their own.

A new family is a file here and a line below.
"""

from asap_ref.extensions.cumulants import Cumulants
from asap_ref.extensions.moments import Moments
from asap_ref.extensions.quadratic import Quadratic

__all__ = ["Cumulants", "Moments", "Quadratic"]
