"""Train-then-compile: what is recorded, what the compiled model keeps, and what the reports say."""

import numpy as np
import pytest

from asap_ref import Attention, sinkhorn, transport_plan
from asap_ref.compilation import column_error, compile_model, fidelity, hardness, record
from asap_ref.parameters import leaves
from asap_ref.transformer import Architecture, Transformer
from asap_ref.transport import attention_scores

SMALL = Architecture(image=(6, 6), patch=2, n_classes=3, width=12, n_layers=2, n_heads=3)
TEACHER = Transformer.create(SMALL, Attention("sinkhorn", {"n_iter": 8, "epsilon": 0.5}))
rng = np.random.default_rng(0)
CALIBRATION = rng.standard_normal((200, 6, 6)).astype(np.float32)
HELD_OUT = rng.standard_normal((50, 6, 6)).astype(np.float32)


def test_recording_changes_nothing_and_keeps_what_each_layer_was_given():
    calls = record(TEACHER, HELD_OUT)
    assert [call[0].shape for call in calls] == [(50, 3, 10, 4)] * 2
    q, k, v, query_mask, key_mask = calls[0]
    assert query_mask is None and key_mask is None
    # the first layer's queries, by hand
    from asap_ref.embedding import embed_vjp
    from asap_ref.layers import layer_norm, linear
    from asap_ref.transformer import split_qkv

    params = TEACHER.params
    x, _, _ = embed_vjp(params["embedding"], HELD_OUT, SMALL)
    qkv = linear(layer_norm(x, **params["block0"]["norm1"]), **params["block0"]["heads"]["qkv"])
    for found, expected in zip((q, k, v), split_qkv(qkv, 3), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_compiled_model_has_the_teachers_parameters_and_comes_close_to_it():
    compiled, report = compile_model(TEACHER, [CALIBRATION], n_slices=8)
    assert all(a is b for a, b in zip(leaves(compiled.params), leaves(TEACHER.params), strict=True))
    assert [a.name for a in compiled.attentions] == ["asap", "asap"]
    assert all(0 < r <= 1 for layer in report for r in layer["r_squared"])
    asap = fidelity(TEACHER, compiled.attentions, HELD_OUT)
    one = fidelity(TEACHER, (Attention("sinkhorn", {"n_iter": 1, "epsilon": 0.5}),) * 2, HELD_OUT)
    for better, worse in zip(asap, one, strict=True):
        assert np.mean(better["output_error"]) < np.mean(worse["output_error"])
        assert np.mean(better["column_error"]) < np.mean(worse["column_error"])


def test_batches_of_calibration_data_add_up_to_the_whole():
    whole, _ = compile_model(TEACHER, [CALIBRATION], n_slices=4)
    parts, _ = compile_model(TEACHER, [CALIBRATION[:70], CALIBRATION[70:]], n_slices=4)
    for a, b in zip(whole.attentions, parts.attentions, strict=True):
        # the activations are float32 and products of other shapes round differently
        np.testing.assert_allclose(
            a.settings["amortizer"].weights, b.settings["amortizer"].weights, rtol=1e-3, atol=1e-4
        )


def test_the_teacher_is_faithful_to_itself_and_column_error_is_the_plans():
    for layer in fidelity(TEACHER, TEACHER.attentions, HELD_OUT):
        assert layer["output_error"] == [0.0] * 3
    q, k, *_ = record(TEACHER, HELD_OUT)[0]
    S = attention_scores(q, k)
    plan = transport_plan(S, sinkhorn(S, n_iter=8, epsilon=0.5), epsilon=0.5)
    expected = np.abs(plan.sum(-2) - 1).mean((0, 2))
    np.testing.assert_allclose(column_error(TEACHER.attentions[0], q, k), expected, atol=1e-5)


def test_hardness_grows_as_epsilon_falls():
    soft = hardness(TEACHER, HELD_OUT)
    sharp = hardness(TEACHER.with_attention(Attention("sinkhorn", {"n_iter": 8, "epsilon": 0.1})), HELD_OUT)
    first, sharp_first = soft[0], sharp[0]  # later layers see other activations
    assert np.all(np.asarray(first["iterations"]) <= sharp_first["iterations"])
    np.testing.assert_allclose(np.asarray(sharp_first["score_range"]) / first["score_range"], 5.0, rtol=1e-5)
    S = attention_scores(*record(TEACHER, HELD_OUT)[0][:2])
    head = int(np.argmax(soft[0]["iterations"]))
    needed = soft[0]["iterations"][head]
    errors = [
        np.abs(transport_plan(S, sinkhorn(S, n_iter=t, epsilon=0.5), epsilon=0.5).sum(-2) - 1).max(-1).mean(0)
        for t in (needed - 1, needed)
    ]
    assert errors[0][head] > 0.05 >= errors[1][head]


def test_wrong_calls_say_what_was_expected():
    with pytest.raises(TypeError, match="only once"):
        compile_model(TEACHER, iter([CALIBRATION]))
    with pytest.raises(ValueError, match="empty"):
        compile_model(TEACHER, [])
    with pytest.raises(ValueError, match="softmax attention, expected sinkhorn"):
        compile_model(TEACHER.with_attention(Attention("softmax")), [CALIBRATION])
    with pytest.raises(ValueError, match="n_iter must be at least 1"):
        compile_model(TEACHER.with_attention(Attention("sinkhorn", {"n_iter": 0})), [CALIBRATION])
