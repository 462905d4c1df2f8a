"""Advice: what is compared, that its errors are those of the reports, and that its choice follows from the numbers."""

import numpy as np
import pytest

from asap_ref import Architecture, Attention, Sequences, Transformer
from asap_ref.fidelity.comparison import compare_attentions
from asap_ref.lab.advice import MIXED, Advice, advise, of_length, some_of
from asap_ref.lab.replacements import geometric_mean

SIZES = Architecture(features=3, n_classes=3, width=12, n_layers=2, n_heads=3)
TEACHER = Transformer.create(SIZES, Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5}))
rng = np.random.default_rng(0)
CALIBRATION = 2 * rng.standard_normal((60, 9, 3)).astype(np.float32)
INPUTS = 2 * rng.standard_normal((12, 14, 3)).astype(np.float32)
SMALL = {"n_slices": 4, "candidates": None, "quadratic": 0, "moments": 0}


@pytest.fixture(scope="module")
def found():
    return advise(TEACHER, INPUTS, [CALIBRATION], error=0.05, **SMALL)


def test_everybody_is_measured_in_every_layer_with_the_errors_of_the_reports(found):
    names = {"softmax", "dual-softmax", "sinkhorn", *(f"sinkhorn-{t}" for t in (1, 2, 3)), "asap", "asap-refined"}
    names |= {f"over-relaxed-softmax-{t}" for t in (1, 2, 3)} | {f"over-relaxed-gaussian-{t}" for t in (1, 2)}
    assert set(found.models) - {MIXED} == names  # T = 5 is no cut of a teacher of 4
    assert found.about == {"sequences": 12, "tokens": 15, "backend": "numpy"}  # with the class token
    for name, model in found.models.items():
        expected = compare_attentions(TEACHER, model.attentions, INPUTS)
        rows = [row for row in found.rows if row["attention"] == name]
        assert [row["layer"] for row in rows] == [0, 1] and all(row["ms"] > 0 for row in rows)
        for row, layer in zip(rows, expected, strict=True):
            assert row["output_error"] == pytest.approx(layer["output_error"], rel=1e-6, abs=1e-9)
    assert found.models["asap"].attentions[0].settings["amortizer"].refine == 0
    assert found.models["asap-refined"].attentions[0].settings["amortizer"].omega is not None
    assert found.error_of("asap-refined") < found.error_of("asap") < found.error_of("softmax")


def made_up(times, errors, error=0.05):
    """Advice on one layer: {name: ms}, {name: errors of its heads}."""
    rows = [{"layer": 0, "attention": name, "ms": ms, "output_error": errors[name]} for name, ms in times.items()]
    models = dict.fromkeys(times, TEACHER)
    return Advice(models, rows, error, {"sequences": 1, "tokens": 8, "backend": "numpy"})


def test_the_cheapest_is_chosen_on_the_mean_and_at_every_head():
    times = {"softmax": 1.0, "sinkhorn-1": 2.0, "asap": 3.0, "sinkhorn": 9.0}
    errors = {"softmax": [0.3, 0.04], "sinkhorn-1": [0.08, 0.01], "asap": [0.04, 0.01], "sinkhorn": [0.0, 0.0]}
    advice = made_up(times, errors)
    assert advice.cheapest() == "sinkhorn-1"  # the geometric mean is 0.028
    assert advice.cheapest(every_head=True) == "asap" and advice.chosen() == [["asap", "softmax"]]
    assert [advice.cheapest(error) for error in (0.2, 0.028, 0.01)] == ["softmax", "asap", "sinkhorn"]
    assert "cheapest is sinkhorn-1: 2.00 ms" in advice.sentence()
    assert "Its worst head is off by 0.080; every head is within with asap, 3.00 ms." in advice.sentence()
    mixed = made_up(times | {MIXED: 2.5}, errors | {MIXED: [0.04, 0.04]})
    assert mixed.chosen() == advice.chosen()
    assert mixed.sentence().endswith("with mixed, 2.50 ms, (layer.head) asap for 0.0; softmax for 0.1.")
    assert made_up(times, errors, error=0.0).sentence().endswith("Every head is within it.")
    lines = advice.markdown().splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(times)  # by time
    assert lines[1] == "| sinkhorn-1 | 2.00 | 2.00 | 0.028 | 0.080 | 1 of 2 |"


def test_a_mixture_attends_with_each_heads_own_choice(found):
    names = found.chosen()
    mixture = found.mixture()
    for layer, layers_names in enumerate(names):
        every = {name: compare_attentions(TEACHER, found.models[name].attentions, INPUTS) for name in layers_names}
        errors = compare_attentions(TEACHER, mixture.attentions, INPUTS)[layer]["output_error"]
        expected = [every[name][layer]["output_error"][head] for head, name in enumerate(layers_names)]
        assert errors == pytest.approx(expected, rel=1e-4, abs=1e-6) and max(errors) <= 0.05
    assert (MIXED in found.models) == (len({name for layer in names for name in layer}) > 1)


def test_a_compiled_model_is_advised_as_its_teacher(found):
    again = advise(found.models["asap"], INPUTS, [CALIBRATION], **SMALL)
    assert again.models["sinkhorn"].attentions == TEACHER.attentions
    assert geometric_mean(again.errors("sinkhorn-2")) == pytest.approx(found.error_of("sinkhorn-2"))


def test_other_array_modules_are_advised_on_their_own_arrays(found, tmp_path):
    TEACHER.save(tmp_path / "teacher.npz")
    elsewhere = Transformer.load(tmp_path / "teacher.npz", backend="array_api_strict")
    other = advise(elsewhere, INPUTS, [CALIBRATION], **SMALL)
    assert other.about["backend"] == "array_api_strict"
    for name in ("softmax", "over-relaxed-gaussian-1", "asap-refined"):
        assert other.error_of(name) == pytest.approx(found.error_of(name), rel=1e-3)


def test_sequences_are_cut_to_a_length_and_short_ones_left_out():
    ids = np.asarray([[4, 2, 0], [3, 0, 0], [5, 6, 7]])
    np.testing.assert_array_equal(of_length(ids, 2), [[4, 2], [5, 6]])
    vectors = Sequences.of([np.ones((n, 2)) for n in (3, 5, 4)])
    assert of_length(vectors, 4).shape == (2, 4, 2) and of_length(vectors, 4).mask.all()
    assert of_length(np.zeros((3, 6, 2)), 5).shape == (3, 5, 2)
    with pytest.raises(ValueError, match="length is 6, but the longest of the data has 5 tokens"):
        of_length(vectors, 6)
    assert len(some_of(np.zeros((3, 9, 2)), 9)) == 3 and len(some_of(np.zeros((9, 4096, 2)), 4096)) == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="advise: model must be a Transformer, got dict"):
        advise({}, INPUTS, [CALIBRATION])
    with pytest.raises(ValueError, match="advise: error must be at least 0"):
        advise(TEACHER, INPUTS, [CALIBRATION], error=-0.1)
    with pytest.raises(ValueError, match="no Sinkhorn teacher stands behind"):
        advise(TEACHER.with_attention(Attention("softmax")), INPUTS, [CALIBRATION])
