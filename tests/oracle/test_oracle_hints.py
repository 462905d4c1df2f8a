"""Hints by evidence: the mistake that gives just what was found, and flags ranked by how well they explain it."""

from types import SimpleNamespace

import numpy as np
import pytest

from asap_ref import oracle
from asap_ref.oracle import reference
from asap_ref.oracle.otherwise import soft_sort_over_ranks
from asap_ref.oracle.suspects import ONLY_IN
from asap_ref.oracle.whatif import shorten


def checked(operator, function, dtype="float64", version=2, **vjp):
    module = SimpleNamespace(__name__="mine", **{operator: function}, **vjp)
    return oracle.check_module(module, operator=operator, dtype=dtype, version=version)


def remarks(report):
    return " ".join(text for r in report.failed for c in r.comparisons for text in c.remarks)


def as_length(mask):
    return None if mask is None else np.arange(mask.shape[-1]) < mask.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("operator", "change", "flag", "words"),
    [
        ("sinkhorn", lambda a: a | {"n_iter": a["n_iter"] + 1}, "not_converged", "it is what n_iter = 4 gives; 3 was"),
        ("sinkhorn", lambda a: a | {"n_iter": max(a["n_iter"] - 1, 0)}, "not_converged", "n_iter = 1 gives; 2 was"),
        ("sinkhorn", lambda a: {k: x for k, x in a.items() if k != "init"}, "init", "if init is not looked at"),
        ("asap_attention", lambda a: a | {"refine": 0}, "refine", "it is what refine = 0 gives; 1 was asked for"),
        ("lse", lambda a: a | {"epsilon": 1.0}, "epsilon_scaling", "it is what epsilon = 1.0 gives"),
        ("attend", lambda a: a | {"q": -a["q"]}, "sign", "it is what -q gives"),
        ("attend", lambda a: a | {"v": shorten(a["v"], "bfloat16")}, "full_mantissa", "v are rounded to bfloat16"),
        ("lse", lambda a: a | {"query_dual": shorten(a["query_dual"], "TF32")}, "full_mantissa", "rounded to TF32"),
        ("amortized_query_dual", lambda a: a | {"weights": np.stack([a["weights"][0]] * len(a["weights"]))},
         "head_weights", "all heads have the weights of the first"),
    ],
)  # fmt: skip
def test_the_mistake_that_gives_what_was_found_is_named(operator, change, flag, words):
    def wrong(**given):
        changed = change(given)
        arrays = {k: x.astype(given[k].dtype) if hasattr(x, "dtype") else x for k, x in changed.items()}
        return getattr(reference, operator)(**arrays)

    dtype = "float32" if flag == "full_mantissa" else "float64"
    report = checked(operator, wrong, dtype)
    assert not report.passed
    assert words in remarks(report)
    assert flag in report.suspects()[:2]


def test_a_start_from_zero_in_place_of_softmax_is_named():
    def sinkhorn(scores, **given):
        return reference.sinkhorn(scores, **({"init": np.zeros(scores.shape[:-1], scores.dtype)} | given))

    report = checked("sinkhorn", sinkhorn, version=1)
    assert "if the iterations start from a zero dual, and not from that of softmax" in remarks(report)
    assert "softmax_start" in report.suspects()[:2]


def test_a_sum_over_the_other_axis_is_named():
    def entropic_c_transform(scores, dual, onto="key", epsilon=1.0, query_mask=None, key_mask=None):
        S = (dual[..., :, None] if onto == "key" else dual[..., None, :]) + scores
        out = -epsilon * np.log(np.exp(S / epsilon).sum(-1 if onto == "key" else -2))
        right = dict(onto=onto, epsilon=epsilon, query_mask=query_mask, key_mask=key_mask)
        square = scores.shape[-1] == scores.shape[-2] and query_mask is None and key_mask is None
        return out if square else reference.entropic_c_transform(scores, dual, **right)

    report = checked("entropic_c_transform", entropic_c_transform, version=1)
    assert "it is what a sum over the other axis gives: over keys" in remarks(report)
    assert "row_instead_of_column" in report.suspects()[:2]


def test_a_soft_sort_normalised_over_ranks_is_named():
    def sliced_attention(q, k, v, directions=None, query_mask=None, key_mask=None, **settings):
        given = dict(q=q, k=k, v=v, directions=directions)
        if settings["hard"] or query_mask is not None or key_mask is not None:
            return reference.sliced_attention(**given, query_mask=query_mask, key_mask=key_mask, **settings)
        return soft_sort_over_ranks(**given, **settings)

    report = checked("sliced_attention", sliced_attention, version=1)
    assert "if the soft permutations are normalised over ranks, not over tokens" in remarks(report)
    assert "soft_sort" in report.suspects()[:2]


def test_masks_of_the_first_sequence_for_all_are_named():
    def entropic_c_transform(scores, dual, query_mask=None, key_mask=None, **settings):
        masks = [m if m is None or m.ndim < 2 else np.broadcast_to(m[:1], m.shape) for m in (query_mask, key_mask)]
        scores, dual = np.nan_to_num(scores), np.nan_to_num(dual)
        masks = dict(zip(("query_mask", "key_mask"), masks, strict=True))
        return reference.entropic_c_transform(scores, dual, **masks, **settings)

    report = checked("entropic_c_transform", entropic_c_transform)
    assert "it is what the masks of the first sequence give for all" in remarks(report)


def test_a_mask_that_is_taken_for_a_length_is_named():
    def attend(q, k, v, key_dual, query_mask=None, key_mask=None, *, epsilon):
        q, k, v, key_dual = (np.nan_to_num(x) for x in (q, k, v, key_dual))
        return reference.attend(
            q, k, v, key_dual, query_mask=query_mask, key_mask=as_length(key_mask), epsilon=epsilon
        )

    report = checked("attend", attend)
    assert "it is what comes out if key_mask is taken for a length" in remarks(report)
    assert {"mask_holes", "left_padding"} & set(report.suspects()[:2])


def test_the_last_tile_that_is_dropped_is_named():
    def softmax_attention(q, k, v, query_mask=None, key_mask=None):
        seen = np.arange(k.shape[-2]) < max(k.shape[-2] // 32 * 32, 32)
        key_mask = seen if key_mask is None else key_mask & seen
        return reference.softmax_attention(q, k, v, query_mask=query_mask, key_mask=key_mask)

    report = checked("softmax_attention", softmax_attention)
    assert "only the 64 first of 65 keys are seen" in remarks(report)
    assert "tile_edges" in report.suspects()[:2]


def test_wrong_gradients_of_right_values_are_the_backward_pass():
    def attend_vjp(q, k, v, key_dual, **settings):
        out, vjp = reference.attend_vjp(q, k, v, key_dual, **settings)
        return out, lambda d_out: (*vjp(d_out)[:3], 0 * key_dual.astype(out.dtype))

    report = checked("attend", reference.attend, attend_vjp=attend_vjp)
    assert not report.passed
    assert "gradient_through_both_sides" in report.suspects()[:2]


def test_cotangents_in_half_are_named_rather_than_the_backward_pass():
    def attend_vjp(q, k, v, key_dual, **settings):
        out, vjp = reference.attend_vjp(q, k, v, key_dual, **settings)
        return out, lambda d_out: vjp(shorten(d_out, "bfloat16").astype(d_out.dtype))

    report = checked("attend", reference.attend, "float32", attend_vjp=attend_vjp)
    assert "the cotangents are rounded to bfloat16" in remarks(report)
    assert report.suspects()[0] == "full_mantissa"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_flags_that_the_dtype_rules_out_are_not_named(dtype):
    report = checked(
        "sinkhorn", lambda scores, **a: tuple(0 * x for x in reference.sinkhorn(scores, **a)), dtype, None
    )
    named = set(report.suspects())
    assert named and not {flag for flag in named if dtype not in ONLY_IN.get(flag, (dtype,))}
    possible = {flag for case in oracle.cases("sinkhorn") for flag in case.flags}
    assert named <= possible | {"gradient_through_both_sides", "float32_inside"}


def test_missing_outputs_and_errors_come_first():
    report = checked("sinkhorn", lambda scores, **a: reference.sinkhorn(scores, **a).query)
    assert report.suspects()[0] == "missing_output"

    def broken(q, k):
        raise RuntimeError("not written yet")

    report = checked("attention_scores", broken)
    assert report.suspects()[0] == "exception"
    assert "exception: the implementation raised an error" in str(report)


def test_tf32_keeps_eleven_bits():
    x = np.asarray([1 + 2.0**-10, 1 + 2.0**-12, 2.0**100 * (1 + 2.0**-10)])
    assert np.array_equal(shorten(x, "TF32") == x, [True, False, True])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_do_not_sum_to_one_are_told_to_become_a_softmax(dtype):
    def asap_attention(q, k, v, directions, weights, basis=None, *, cumulants, epsilon, refine, **masks):
        """P v taken literally, f with the few digits that large numbers leave it."""
        f_hat = reference.amortized_query_dual(
            q, k, directions, weights, basis=basis, cumulants=cumulants, **masks
        )
        S = reference.attention_scores(q, k)
        f, g = reference.sinkhorn(S, n_iter=1 + refine, init=f_hat, epsilon=epsilon, **masks)
        f = np.round(256 * f) / 256
        return reference.transport_plan(S, f, g, epsilon=epsilon, **masks) @ v

    module = SimpleNamespace(__name__="mine", asap_attention=asap_attention)
    report = oracle.run_case(module, oracle.case("asap_attention/large_scores"), dtype=dtype)
    assert not report.passed
    assert "softmax((g + S) / epsilon) v; exp((f + g + S) / epsilon) v has the roundings" in str(report).replace(
        "\n" + " " * 27, " "
    )
    assert "look at    large_logits" in str(report)


def test_a_forgotten_key_is_not_taken_for_rows_that_do_not_sum_to_one():
    def softmax_attention(q, k, v, **masks):
        return reference.softmax_attention(q, k[..., :-1, :], v[..., :-1, :], **masks)

    module = SimpleNamespace(__name__="mine", softmax_attention=softmax_attention)
    report = oracle.run_case(module, oracle.case("softmax_attention/large_scores"))
    assert not report.passed and "rows of the plan do not sum" not in str(report)
