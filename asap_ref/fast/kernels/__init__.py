"""The attentions as CUDA kernels, for CuPy: read a .cu file beside the module of ``method`` whose formula it states."""

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
