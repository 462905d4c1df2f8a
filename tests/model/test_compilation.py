"""Train-then-compile: what is recorded, what the compiled model keeps, and what the reports say."""

import numpy as np
import pytest

from asap_ref import Attention, array_module, sinkhorn, transport_plan
from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.fidelity.hardness import hardness
from asap_ref.fidelity.report import FidelityReport, fidelity_report, teacher_of
from asap_ref.method.transport import attention_scores
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import compile_model
from asap_ref.model.measures import column_distance, column_sums, plan_of, root_of_ratio
from asap_ref.model.recording import record
from asap_ref.model.sequences import Sequences
from asap_ref.model.transformer import Transformer
from asap_ref.support.trees import leaves

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
    from asap_ref.model.blocks import split_qkv
    from asap_ref.model.embedding import embed_vjp
    from asap_ref.model.layers import layer_norm, linear

    params = TEACHER.params
    x, _, _ = embed_vjp(params["embedding"], HELD_OUT, SMALL)
    qkv = linear(layer_norm(x, **params["block0"]["norm1"]), **params["block0"]["heads"]["qkv"])
    for found, expected in zip((q, k, v), split_qkv(qkv, 3), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_compiled_model_has_the_teachers_parameters_and_comes_close_to_it():
    compiled, report = compile_model(TEACHER, [CALIBRATION])
    assert all(a is b for a, b in zip(leaves(compiled.params), leaves(TEACHER.params), strict=True))
    assert [a.name for a in compiled.attentions] == ["asap", "asap"]
    assert all(0 < r <= 1 for layer in report for r in layer["r_squared"])
    asap = compare_attentions(TEACHER, compiled.attentions, HELD_OUT)
    one = compare_attentions(TEACHER, (Attention("sinkhorn", {"n_iter": 1, "epsilon": 0.5}),) * 2, HELD_OUT)
    for better, worse in zip(asap, one, strict=True):
        assert np.mean(better["output_error"]) < np.mean(worse["output_error"])
        assert np.mean(better["column_error"]) < np.mean(worse["column_error"])


def test_without_another_word_kl_is_the_objective_where_the_two_sided_transform_comes_at_once():
    small = {"n_slices": 2, "candidates": None, "quadratic": 0, "moments": 0}
    for settings, expected in (
        ({}, "kl"),
        ({"refine": 1}, "regression"),
        ({"into": "one-sided"}, "regression"),
        ({"objective": "regression"}, "regression"),
        ({"objective": "kl", "refine": 1}, "kl"),
    ):
        compiled, _ = compile_model(TEACHER, [CALIBRATION[:8]], **small, **settings)
        amortizer = compiled.attentions[0].settings["amortizer"]
        assert (amortizer.objective, amortizer.refine) == (expected, settings.get("refine", 0))


def test_batches_of_calibration_data_add_up_to_the_whole():
    whole, _ = compile_model(TEACHER, [CALIBRATION], n_slices=4, candidates=None, moments=0)
    parts, _ = compile_model(TEACHER, [CALIBRATION[:70], CALIBRATION[70:]], n_slices=4, candidates=None, moments=0)
    for a, b in zip(whole.attentions, parts.attentions, strict=True):
        # the activations are float32 and products of other shapes round differently
        np.testing.assert_allclose(
            a.settings["amortizer"].weights, b.settings["amortizer"].weights, rtol=1e-3, atol=1e-4
        )


def test_the_teacher_is_faithful_to_itself_and_column_error_is_the_plans():
    for layer in compare_attentions(TEACHER, TEACHER.attentions, HELD_OUT):
        assert layer["output_error"] == [0.0] * 3
    q, k, *_ = record(TEACHER, HELD_OUT)[0]
    S = attention_scores(q, k)
    plan = transport_plan(S, sinkhorn(S, n_iter=8, epsilon=0.5), epsilon=0.5)
    expected = np.abs(plan.sum(-2) - 1).mean((0, 2))
    sums = column_sums(TEACHER.attentions[0], q, k)
    np.testing.assert_allclose(sums, plan_of(TEACHER.attentions[0], q, k).sum(-2), atol=1e-5)
    np.testing.assert_allclose(column_distance(sums, q.shape[-2]).mean(0), expected, atol=1e-5)


def test_hardness_is_that_of_tokens_and_not_of_padding():
    a = Architecture(vocabulary=9, length=7, n_classes=3, width=12, n_heads=3, n_layers=1)
    model = Transformer.create(a, Attention("sinkhorn", {"n_iter": 8}))
    model.params["embedding"]["position"][5:] *= 100  # places that only padding has
    words = np.random.default_rng(0).integers(1, 9, (6, 4))
    padded = np.hstack([words, np.zeros((6, 3), int)])
    for name, found in hardness(model, padded)[0].items():
        np.testing.assert_allclose(found, hardness(model, words)[0][name], rtol=1e-5, err_msg=name)


def test_a_head_without_values_has_no_error():
    """What is off by nothing of nothing is not off: NaN would hide it from every comparison."""
    model = Transformer.create(SMALL, TEACHER.attentions[0])
    model.params["block0"]["heads"]["qkv"]["weight"][:, 24:28] = 0  # values of the first head
    compiled, report = compile_model(model, [CALIBRATION[:50]], n_slices=2, fallback=0.0)
    assert report[0]["output_error"][0] == 0 and 0 not in report[0]["on_sinkhorn"]
    rows = fidelity_report(compiled, HELD_OUT[:9]).rows
    assert [row["output_error"] for row in rows if row["layer"] == 0] == [0, 0, 0]
    np.testing.assert_array_equal(
        root_of_ratio(np.asarray([0.0, 1.0, 1.0]), np.asarray([0.0, 0.0, 4.0])), [0, np.inf, 0.5]
    )


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


def test_heads_where_asap_is_not_good_enough_are_named_and_stay_with_sinkhorn(tmp_path):
    _, report = compile_model(
        TEACHER, [CALIBRATION], n_slices=4, candidates=None, moments=0, quadratic=0, fallback=1e9
    )
    assert [layer["on_sinkhorn"] for layer in report] == [[], []]
    errors = np.asarray([layer["output_error"] for layer in report])
    threshold = float(np.sort(errors.ravel())[3])  # two heads of six are worse
    compiled, report = compile_model(
        TEACHER, [CALIBRATION], n_slices=4, candidates=None, moments=0, quadratic=0, fallback=threshold
    )
    named = [(layer["layer"], h) for layer in report for h in layer["on_sinkhorn"]]
    assert named == [tuple(map(int, x)) for x in np.argwhere(errors > threshold)] and len(named) == 2
    assert "mixed" in {attention.name for attention in compiled.attentions}
    found = {(row["layer"], row["head"]): row for row in fidelity_report(compiled, HELD_OUT).rows}
    for place, row in found.items():
        assert row["attention"] == ("sinkhorn" if place in named else "asap")
        assert (row["output_error"] < 1e-5) == (place in named)  # float32
        assert (row["r_squared"] is None) == (place in named)
    compiled.save(tmp_path / "mixed.npz")
    again = Transformer.load(tmp_path / "mixed.npz")
    np.testing.assert_array_equal(again(HELD_OUT), compiled(HELD_OUT))
    from asap_ref.model.training import loss_and_gradients

    _, gradients = loss_and_gradients(compiled, HELD_OUT, np.zeros(50, int))
    assert all(np.isfinite(g).all() for g in leaves(gradients))
    untouched, _ = compile_model(
        TEACHER, [CALIBRATION], n_slices=4, candidates=None, moments=0, quadratic=0, fallback=0
    )
    assert [a.name for a in untouched.attentions] == ["sinkhorn", "sinkhorn"]


def test_the_fidelity_report_measures_what_it_says(tmp_path):
    compiled, _ = compile_model(TEACHER, [CALIBRATION], n_slices=4, candidates=None, moments=0)
    report = fidelity_report(compiled, HELD_OUT)
    assert teacher_of(compiled).attentions == TEACHER.attentions
    short = compare_attentions(TEACHER, compiled.attentions, HELD_OUT)
    hard = hardness(TEACHER, HELD_OUT)
    q, k, *_ = record(TEACHER, HELD_OUT)[1]
    S = attention_scores(q, k).astype(np.float64)
    target = sinkhorn(S, n_iter=7, epsilon=0.5).query
    target -= target.mean(-1, keepdims=True)
    expected = transport_plan(S, sinkhorn(S, n_iter=8, epsilon=0.5), epsilon=0.5)
    plan = plan_of(compiled.attentions[1], q, k)
    for row in report.rows:
        layer, h = row["layer"], row["head"]
        for name in ("output_error", "column_error"):
            assert row[name] == pytest.approx(short[layer][name][h], rel=1e-6)
        assert row["iterations"] == hard[layer]["iterations"][h]
        assert row["score_range"] == pytest.approx(hard[layer]["score_range"][h], rel=1e-5)
        assert 1 <= row["equivalent_iterations"] <= 50
        if layer == 1:  # by hand; the activations are float32
            amortizer = compiled.attentions[1].settings["amortizer"]
            residual = amortizer.predict(q, k)[:, h] - target[:, h]
            assert row["r_squared"] == pytest.approx(1 - np.sum(residual**2) / np.sum(target[:, h] ** 2), abs=1e-4)
            divergence = np.sum(expected[:, h] * np.log(expected[:, h] / plan[:, h])) / (50 * 10)
            assert row["plan_kl"] == pytest.approx(divergence, rel=1e-3)
    assert report.markdown().count("\n") == 2 + len(report.rows)
    assert [path.suffix for path in report.draw(tmp_path / "fidelity")] == [".svg", ".png"]
    worst = max(report.rows, key=lambda row: row["output_error"])
    assert report.worse_than(0.0)[0] == (worst["layer"], worst["head"])
    report.save(tmp_path / "fidelity.npz")
    again = FidelityReport.load(tmp_path / "fidelity.npz")
    assert again.rows == report.rows
    for name, x in report.samples.items():
        np.testing.assert_array_equal(again.samples[name], x)
        assert x.shape == (50, 2, 3)


def test_the_fidelity_report_knows_padding_and_batches():
    text = Architecture(vocabulary=20, length=9, n_classes=2, width=8, n_layers=1, n_heads=2)
    teacher = Transformer.create(text, Attention("sinkhorn", {"n_iter": 4}))
    tokens = rng.integers(1, 20, (60, 6))
    tokens[::2, 4:] = 0
    compiled, _ = compile_model(teacher, [tokens], n_slices=3, candidates=None, moments=0, quadratic=0)
    whole, padded = (fidelity_report(compiled, x).rows for x in (tokens, np.pad(tokens, ((0, 0), (0, 3)))))
    parts = fidelity_report(compiled, [tokens[:25], tokens[25:]]).rows
    for row, other, sum_of_parts in zip(whole, padded, parts, strict=True):
        assert row["attention"] == other["attention"] == sum_of_parts["attention"] == "asap"
        for name in set(row) - {"attention"}:
            value = row[name]
            # float32, and sums over other shapes
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-5)
            if name != "iterations":  # of the hardest batch
                assert sum_of_parts[name] == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_a_report_needs_a_teacher_and_data():
    with pytest.raises(ValueError, match="layer 0 has softmax attention, which no Sinkhorn teacher stands behind"):
        fidelity_report(TEACHER.with_attention(Attention("softmax")), HELD_OUT)
    with pytest.raises(ValueError, match="inputs is empty"):
        fidelity_report(TEACHER, HELD_OUT[:0])
    with pytest.raises(ValueError, match="one example each leave none to hold out"):
        compile_model(TEACHER, [CALIBRATION[:1]], fallback=0.1)


def test_a_one_sided_model_is_reported_on_by_its_key_dual():
    compiled, _ = compile_model(TEACHER, [CALIBRATION], n_slices=8, candidates=None, moments=0, into="one-sided")
    report = fidelity_report(compiled, HELD_OUT)
    assert teacher_of(compiled).attentions == TEACHER.attentions
    q, k, *_ = record(TEACHER, HELD_OUT)[0]
    target = sinkhorn(attention_scores(k, q), n_iter=7, epsilon=0.5).query  # sides exchanged, as it was calibrated
    target = target - target.mean(-1, keepdims=True)
    residual = compiled.attentions[0].settings["amortizer"].predict(k, q) - target
    expected = 1 - np.sum(residual**2, (0, 2)) / np.sum(target**2, (0, 2))
    rows = [row for row in report.rows if row["layer"] == 0]
    assert {row["attention"] for row in rows} == {"one-sided"}
    np.testing.assert_allclose([row["r_squared"] for row in rows], expected, atol=1e-4)  # float32 activations


@pytest.mark.parametrize("module", ["array_api_strict", "torch"])
def test_examples_are_held_out_on_any_module(module):
    inputs = np.random.default_rng(0).standard_normal((12, 8, 8)).astype("float32")
    small = Architecture(patch=4, width=8, n_layers=1, n_heads=2)
    settings = {"n_slices": 2, "candidates": None, "quadratic": 0, "fallback": 1e-9}
    errors = []
    for xp in (np, array_module(module)):
        model = Transformer.create(small, Attention("sinkhorn", {"n_iter": 2}), xp=xp)
        compiled, (layer,) = compile_model(model, [xp.asarray(inputs)], **settings)
        assert compiled.attentions[0].name == "sinkhorn" and layer["on_sinkhorn"] == [0, 1]  # nothing is that good
        errors.append(layer["output_error"])
    np.testing.assert_allclose(*errors, rtol=1e-3)  # float32, through normal equations


@pytest.mark.parametrize(
    ("sizes", "inputs"),
    [
        (SMALL, CALIBRATION),
        (Architecture(features=2, width=4, n_layers=1, n_heads=1), np.zeros((8, 5, 2), np.float32)),
        (
            Architecture(features=2, width=4, n_layers=1, n_heads=1),
            Sequences.of([np.zeros((3, 2)), np.zeros((2, 2))]),
        ),
        (Architecture(vocabulary=5, length=3, width=4, n_layers=1, n_heads=1), np.ones((8, 3), int)),
    ],
)
def test_one_batch_that_was_given_for_a_list_of_them_is_named(sizes, inputs):
    model = Transformer.create(sizes, Attention("sinkhorn", {"n_iter": 2}))
    with pytest.raises(TypeError, match=r"got the inputs of one batch; give \[inputs\]"):
        compile_model(model, inputs)
