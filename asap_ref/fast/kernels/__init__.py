"""The attentions as CUDA kernels, for CuPy: read a .cu file beside the module of ``method`` whose formula it states.

Forward, softmax, Sinkhorn and ASAP are kernels; backward, softmax and Sinkhorn are, and `asap_attention_vjp` is the
array form. figures/speed/kernels.md says up to which sizes, and how long the first call compiles.

To run them without a card, in a clone: tests/fast/kernels/stand_in.py is an array module whose kernels g++ compiles.
With that folder on the path, ``from stand_in import NAMESPACE as xp``; then ``softmax_attention(q, k, v)`` of arrays
from ``xp.asarray`` launches them on the CPU. ``python -m asap_ref.lab.card --rehearse`` runs all of them so.

CuPy needs the headers of the CUDA toolkit to compile for float16: a toolkit, or CuPy's extra of them (``pip install
"cupy-cuda12x[ctk]"``). In a clone the package installs with CuPy by ``pip install '.[cuda12]'``.
"""

from asap_ref.fast.kernels.attention import (
    attention_from_key_dual,
    attention_from_query_dual,
    sinkhorn_attention,
    sinkhorn_where_it_pays,
    softmax_attention,
)
from asap_ref.fast.kernels.dispatch import on_device
from asap_ref.fast.kernels.finite import raise_if_not_finite
from asap_ref.fast.kernels.gradient import sinkhorn_attention_vjp
from asap_ref.fast.kernels.launch import array_forms, can_launch, computed_in, number_like
from asap_ref.fast.kernels.prediction import predict

__all__ = [
    "array_forms",
    "attention_from_key_dual",
    "attention_from_query_dual",
    "can_launch",
    "computed_in",
    "number_like",
    "on_device",
    "predict",
    "raise_if_not_finite",
    "sinkhorn_attention",
    "sinkhorn_attention_vjp",
    "sinkhorn_where_it_pays",
    "softmax_attention",
]
