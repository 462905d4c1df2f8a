"""Attention whose heads differ: each head's output and gradients are those of its own mechanism."""

import numpy as np
import pytest
from gradients import check_against_torch, check_vjp
from problems import masks, qkv

from asap_ref import (
    Attention,
    asap_attention,
    fit_amortizer,
    mixed_attention,
    mixed_attention_vjp,
    sinkhorn_attention,
    softmax_attention,
)

Q, K, V = qkv(2, 4, n=6, d=4, p=3)
AMORTIZER = fit_amortizer([qkv(60, 4, n=6, d=4, seed=1)[:2]], n_slices=4, n_iter=5, quadratic=2)
PARTS = (
    (Attention("asap", {"amortizer": AMORTIZER.of_heads([3, 0])}), (3, 0)),
    (Attention("sinkhorn", {"n_iter": 5}), (1,)),
    (Attention("softmax"), (2,)),
)


@pytest.mark.parametrize("padding", ["none", "of sequences", "of heads"])
def test_each_head_attends_as_its_mechanism_does(padding):
    given = {}
    if padding != "none":
        pair = masks(2, 6, 6) if padding == "of sequences" else masks(8, 6, 6)
        shape = (2, 1, 6) if padding == "of sequences" else (2, 4, 6)
        given = dict(zip(("query_mask", "key_mask"), (mask.reshape(shape) for mask in pair), strict=True))
    found = mixed_attention(Q, K, V, PARTS, **given)
    expected = {
        (0, 3): asap_attention(Q, K, V, AMORTIZER, **given),
        (1,): sinkhorn_attention(Q, K, V, n_iter=5, **given),
        (2,): softmax_attention(Q, K, V, **given),
    }
    for heads, out in expected.items():
        # products of other shapes round differently
        np.testing.assert_allclose(found[:, heads], out[:, heads], rtol=0, atol=1e-12)


def test_gradients_agree_with_central_differences():
    check_vjp(
        lambda q, k, v: mixed_attention(q, k, v, PARTS),
        lambda q, k, v: mixed_attention_vjp(q, k, v, PARTS),
        [Q, K, V],
        rtol=1e-5,  # forward in tiles and forward with a backward round differently
        same_forward=False,
    )


def test_gradients_agree_with_torch():
    parts = ((Attention("sinkhorn", {"n_iter": 3}), (0, 2)), (Attention("softmax"), (3, 1)))

    def formula(torch, q, k, v):
        S = q @ k.mT / 2
        f = -torch.logsumexp(S, -1, keepdim=True)
        for _ in range(3):
            g = -torch.logsumexp(S + f, -2, keepdim=True)
            f = -torch.logsumexp(S + g, -1, keepdim=True)
        plans = [torch.exp(S + f + g), torch.softmax(S, -1)]
        return torch.stack([plans[h % 2][:, h] for h in range(4)], 1) @ v

    check_against_torch(lambda q, k, v: mixed_attention_vjp(q, k, v, parts), formula, [Q, K, V])


@pytest.mark.parametrize("heads", [[0, 1], [0, 1, 1], [0, 1, 4]])
def test_every_head_has_one_mechanism(heads):
    with pytest.raises(ValueError, match="expected each of 0 to 3 once"):
        mixed_attention(Q, K, V, [(Attention("softmax"), heads), (Attention("sinkhorn"), [3])])


def test_a_mixed_attention_comes_back_from_its_state():
    attention = Attention("mixed", {"parts": PARTS})
    again = Attention.from_state(*attention.state())
    np.testing.assert_array_equal(again(Q, K, V), attention(Q, K, V))
