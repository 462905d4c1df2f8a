"""Dual softmax: its two definitions agree, gradients, and its fast form."""

import numpy as np
import pytest
from gradients import check_vjp
from problems import masks, qkv

from asap_ref import dual_softmax_attention
from asap_ref.method.transport import attention_scores
from asap_ref.rivals import dual_softmax as definition
from asap_ref.support.arrays import softmax

MASKED = dict(zip(("query_mask", "key_mask"), (mask[:, None] for mask in masks(2, 6, 8)), strict=True))


def test_it_is_the_product_of_row_and_column_softmax():
    q, k, _ = qkv(2, 3, n=6, m=8, d=4)
    S = attention_scores(q, k) / 0.7
    product = softmax(S, axis=-1) * softmax(S, axis=-2)
    plan = dual_softmax_attention(q, k, np.broadcast_to(np.eye(8), (2, 3, 8, 8)), epsilon=0.7)
    np.testing.assert_allclose(plan, product / product.sum(-1, keepdims=True), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", [{}, MASKED], ids=["all", "masked"])
def test_gradients(options):
    settings = {"epsilon": 0.7, **options}
    check_vjp(
        lambda *a: definition.dual_softmax_attention(*a, **settings),
        lambda *a: definition.dual_softmax_attention_vjp(*a, **settings),
        qkv(2, 3, n=6, m=8, d=4, p=5),
    )


@pytest.mark.parametrize("size", [1.0, 100.0])
@pytest.mark.parametrize("options", [{}, MASKED], ids=["all", "masked"])
def test_fast_is_readable(options, size):
    q, k, v = qkv(2, 3, n=6, m=8, d=4, size=size)
    found, expected = (
        home(q, k, v, epsilon=0.7, **options)
        for home in (dual_softmax_attention, definition.dual_softmax_attention)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 if size == 100 else 1e-12)
