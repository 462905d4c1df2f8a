"""What is handed over: reversed, read-only, big-endian, masked, of small integers, in half precision, traced."""

import numpy as np
import pytest

import asap_ref as ar
from asap_ref.calibration import sources
from asap_ref.model.text import build_vocabulary, encode
from asap_ref.support.arrays import array_module, from_numpy, to_numpy
from asap_ref.support.trees import leaves, tree_map

RNG = np.random.default_rng(0)
Q, K = RNG.standard_normal((2, 20, 1, 6, 8))
IMAGES = RNG.standard_normal((16, 8, 8))
LABELS = RNG.integers(0, 3, 16)
SMALL = ar.Architecture(patch=4, width=8, n_layers=1, n_heads=2, n_classes=3)
OF_TEXT = ar.Architecture(vocabulary=50, length=6, width=8, n_layers=1, n_heads=2)
SOFTMAX, SINKHORN = ar.Attention("softmax"), ar.Attention("sinkhorn", {"n_iter": 3})
LAYOUTS = {
    "reversed": lambda x: x[::-1][::1],
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "fortran": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x, (1, *x.shape))[0],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "zero-dimensional": lambda x: x[(0,) * x.ndim],
}


@pytest.mark.parametrize("module", ["numpy", "array_api_strict", "torch", "jax"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_brought_to_any_module(layout, module):
    x = LAYOUTS[layout](np.arange(12.0, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(to_numpy(from_numpy(x, array_module(module))), x)


@pytest.mark.parametrize("layout", ["reversed", "read-only", "big-endian"])
def test_torch_models_take_images_and_labels_of_any_layout(layout):
    model = ar.Transformer.create(SMALL, SOFTMAX, xp=array_module("torch"))
    changed, labels = (LAYOUTS[layout](x) for x in (IMAGES, LABELS))
    plain, plain_labels = (np.array(x, dtype=x.dtype.newbyteorder("=")) for x in (changed, labels))
    np.testing.assert_array_equal(ar.predict(model, changed), ar.predict(model, plain))
    settings = ar.TrainingSettings(epochs=1, dropout=0.1)
    histories = [
        ar.train(model, *pair, settings, label=None)[1] for pair in ((changed, labels), (plain, plain_labels))
    ]
    assert histories[0] == histories[1]


def test_torch_compiles_where_eigenvectors_come_in_descending_order():
    """Head dimension 16 above rank 8, and a rank below d: both take leading eigenvectors, a reversed view."""
    import torch

    xp = array_module("torch")
    architecture = ar.Architecture(width=32, n_heads=2, n_layers=1)
    model = ar.Transformer.create(architecture, SINKHORN, xp=xp)
    batch = torch.asarray(IMAGES, dtype=torch.float32)
    compiled, _ = ar.compile_model(model, [batch], n_slices=2, candidates=None, moments=0)
    expected, _ = ar.compile_model(
        ar.Transformer.create(architecture, SINKHORN), [to_numpy(batch)], n_slices=2, candidates=None, moments=0
    )
    a, b = (to_numpy(m(m.place(to_numpy(batch)))) for m in (compiled, expected))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    fitted = [
        ar.fit_amortizer([(place(Q), place(K))], n_slices=4, quadratic=3) for place in (xp.asarray, np.asarray)
    ]
    np.testing.assert_allclose(fitted[0].weights, fitted[1].weights, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------------ integers, kinds


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "u4", "i4", "u8", "i8", ">i2"])
@pytest.mark.parametrize("module", ["numpy", "torch", "array_api_strict"])
def test_token_ids_and_labels_of_any_integer_type(module, dtype):
    ids = RNG.integers(0, 50, (7, 6))
    model = ar.Transformer.create(OF_TEXT, SOFTMAX, xp=array_module(module))
    np.testing.assert_array_equal(ar.predict(model, ids.astype(dtype)), ar.predict(model, ids))
    labels = RNG.integers(0, 10, 7)
    assert ar.accuracy(model, ids.astype(dtype), labels.astype(dtype)) == ar.accuracy(model, ids, labels)


def test_ids_beyond_the_integers_of_a_module_are_no_other_ids():
    model = ar.Transformer.create(OF_TEXT, SOFTMAX, xp=array_module("jax"))
    with pytest.raises(ValueError, match="ids from 3 to 4294967299, expected 0"):
        ar.predict(model, np.full((1, 6), 3) + np.eye(1, 6, dtype=int) * 2**32)


BYTES = RNG.integers(0, 256, (40, 8, 8)).astype(np.uint8)
MASKED = np.ma.masked_array(IMAGES, IMAGES > 1)
MODEL, TEXTS = ar.Transformer.create(SMALL, SINKHORN), ar.Transformer.create(OF_TEXT, SOFTMAX)
ONE_EPOCH = ar.TrainingSettings(epochs=1)


def trained(inputs=IMAGES, labels=LABELS, model=MODEL, **options):
    return ar.train(model, inputs, labels, ONE_EPOCH, label=None, **options)


WRONG = [
    # ---- images of bytes are no text, ids are no images
    (lambda: ar.predict(MODEL, BYTES), "inputs must be real floating point images, got uint8"),
    (lambda: ar.predict(MODEL, BYTES[:5]), "must be real floating point images, got uint8"),
    (lambda: trained(BYTES, np.zeros(40, int)), "inputs must be real floating point images, got uint8"),
    (lambda: ar.accuracy(MODEL, BYTES, np.zeros(40, int)), "inputs must be real floating point images"),
    (lambda: ar.compile_model(MODEL, [BYTES]), "must be real floating point images, got uint8"),
    (lambda: ar.fidelity_report(ar.compile_model(MODEL, [IMAGES])[0], BYTES), "floating point images, got uint8"),
    (lambda: ar.predict(TEXTS, IMAGES[:, 0, :6]), "inputs must be integer token ids, got float64"),
    (lambda: ar.predict(TEXTS, np.ones((2, 6), bool)), "must be integer token ids, got bool"),
    # ---- masks and matrices that would be dropped
    (lambda: ar.predict(MODEL, MASKED), "inputs must be a NumPy array, got MaskedArray"),
    (lambda: trained(MASKED), "inputs must be a NumPy array, got MaskedArray"),
    (
        lambda: trained(labels=np.ma.masked_array(LABELS, LABELS > 1)),
        "labels must be a NumPy array, got MaskedArray",
    ),
    (lambda: ar.compile_model(MODEL, [MASKED]), "got MaskedArray"),
    (lambda: to_numpy(MASKED), "expected an array .* got MaskedArray"),
    (lambda: ar.fit_amortizer([(np.ma.masked_array(Q), K)]), "got MaskedArray"),
    (lambda: ar.predict(MODEL, IMAGES.tolist()), "inputs must be a NumPy array, got list"),
    # ---- labels of another kind, shape or range
    (lambda: trained(labels=LABELS[:, None]), r"labels has shape \(16, 1\), expected \(16,\)"),
    (lambda: trained(labels=LABELS.astype(float)), "labels must be integers, got float64"),
    (lambda: trained(labels=LABELS > 1), "labels must be integers, got bool"),
    (lambda: trained(labels=LABELS + 1), "train: labels lie from .*expected 0 to 2"),
    (lambda: trained(labels=LABELS[:5]), "16 inputs and 5 labels"),
    (lambda: trained(labels=list(LABELS)), "labels must be a NumPy array, got list"),
    (lambda: ar.accuracy(MODEL, IMAGES, LABELS[:, None]), r"accuracy: labels has shape \(16, 1\)"),
    (lambda: ar.accuracy(MODEL, IMAGES, np.eye(3)[LABELS]), r"accuracy: labels has shape \(16, 3\)"),
    (lambda: ar.accuracy(MODEL, IMAGES, LABELS.astype(str)), "accuracy: labels must be integers, got <U"),
    (lambda: ar.accuracy(MODEL, IMAGES, LABELS.astype(float)), "accuracy: labels must be integers"),
    (lambda: ar.accuracy(MODEL, IMAGES, LABELS - 1), "accuracy: labels lie from -1"),
    # ---- one where several are meant
    (lambda: ar.fit_amortizer((Q, K)), r"batches is a list of batches, got the arrays of one; give \[\(q, k\)\]"),
    (lambda: ar.fit_amortizer([Q[:2], K[:2]]), "batches is a list of batches, got the arrays of one"),
    (
        lambda: ar.recalibrate(ar.fit_amortizer([(Q, K)], n_slices=2), (Q[:2], K[:2])),
        "recalibrate: batches is a list",
    ),
    (lambda: build_vocabulary("the rate fell", 9), "texts must be a list of strings, got one string"),
    (lambda: encode("the rate fell", ("rate",), 3), "texts must be a list of strings, got one string"),
    # ---- settings that would be found out later, or taken for others
    (lambda: ar.Architecture(length=5), "length 5 is of texts or vectors; give vocabulary or features"),
    (lambda: ar.Architecture(vocabulary=5), "length must be an integer, got NoneType"),
    (lambda: ar.Architecture(image=8, patch=2), r"image must be \(height, width\), got 8"),
    (lambda: ar.Architecture(image=(8.0, 8), patch=2), "image must be an integer, got float"),
    (lambda: ar.Attention("sliced", {"hard": "no"}), "hard must be True or False, got str 'no'"),
    (lambda: ar.Attention("sliced", {"temperature": 0}), "temperature must be positive"),
    (lambda: ar.Attention("initial", {"start": "random"}), "start must be one of 'zero'"),
    (lambda: ar.sliced_attention(Q, K, K, hard=1), "hard must be True or False, got int 1"),
    (lambda: ar.Transformer.create(SMALL, SOFTMAX, seed=-1), "seed must be at least 0, got -1"),
    (lambda: ar.slice_directions(4, 4, seed="x"), "seed must be an integer, got str"),
    (lambda: ar.fit_amortizer([(Q, K)], seed=1.5), "seed must be an integer, got float"),
    (lambda: ar.fit_amortizer([(Q, K)], ridge=np.inf), "ridge must be at least 0 and finite"),
    (lambda: ar.fit_amortizer([(Q, K)], cumulants="yes"), "cumulants must be True or False"),
    (lambda: ar.fit_amortizer([(Q, K)], quadratic=True), "quadratic must be an integer, got bool"),
    (lambda: ar.fit_amortizer([(Q, K)], progress="bar"), "progress must be True or False"),
    (lambda: trained(evaluate=lambda m: 0.9), "evaluate must return a dict of numbers, got 0.9"),
    (lambda: trained(evaluate=lambda m: {"a": "good"}), "evaluate must return a dict of numbers"),
    (lambda: ar.train(MODEL, IMAGES, LABELS, {"epochs": 1}), "settings must be TrainingSettings, got dict"),
    (
        lambda: ar.compile_model(MODEL.with_attention(SOFTMAX), [IMAGES]),
        "layer 0 has softmax attention, expected sinkhorn",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_what_would_be_another_question_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_one_mask_in_a_file_is_that_mask(tmp_path):
    mask = np.arange(6) < 4
    np.savez(tmp_path / "a.npz", q=Q, k=K, key_mask=np.broadcast_to(mask, (20, 1, 6)))
    assert [None if x is None else x.shape for x in sources.load(tmp_path / "a.npz")][2:] == [None, (20, 1, 6)]
    found = ar.fit_amortizer([tmp_path / "a.npz"], n_slices=2)
    expected = ar.fit_amortizer([(Q, K, None, np.broadcast_to(mask, (20, 1, 6)))], n_slices=2)
    np.testing.assert_array_equal(found.weights, expected.weights)


def test_dask_arrays_of_unknown_chunks_are_refused_with_the_way_out():
    da = pytest.importorskip("dask.array")
    some = da.from_array(np.arange(20) > 3, chunks=10)
    arrays = tuple(da.from_array(x, chunks=(10, 1, 6, 8))[some] for x in (Q, K))
    with pytest.raises(ValueError, match=r"call compute_chunk_sizes\(\) on each"):
        ar.fit_amortizer(arrays, n_slices=4)


# ------------------------------------------------------------------------------------ numbers of NumPy, and of half


def test_numbers_of_numpy_are_numbers_everywhere(tmp_path):
    labels = LABELS.astype(np.int8)
    architecture = ar.Architecture(width=np.int64(8), n_heads=np.uint8(2), n_layers=1, n_classes=labels.max() + 1)
    attention = ar.Attention("sinkhorn", {"n_iter": np.int64(2), "epsilon": np.float32(0.5)})
    model = ar.Transformer.create(architecture, attention, seed=np.int64(0))
    settings = ar.TrainingSettings(epochs=np.int64(1), learning_rate=np.float32(1e-3), seed=np.uint8(1))
    trained, history = ar.train(
        model,
        IMAGES,
        labels,
        settings,
        label=None,
        checkpoint=tmp_path / "a",
        evaluate=lambda m: {"x": np.float32(1)},
    )
    assert history[0]["x"] == 1.0 and type(history[0]["x"]) is float
    resumed, _ = ar.train(model, IMAGES, labels, settings, label=None, checkpoint=tmp_path / "a", resume=True)
    assert resumed == trained
    trained.save(tmp_path / "model")
    assert ar.load_model(tmp_path / "model") == trained
    amortizer = ar.fit_amortizer(
        [(Q, K)], n_slices=np.int64(4), n_iter=np.int64(5), refine=np.int8(1), ridge=np.float32(0)
    )
    amortizer.save(tmp_path / "amortizer")
    assert ar.Amortizer.load(tmp_path / "amortizer") == amortizer


def test_no_penalty_takes_the_smallest_of_the_best_weights():
    assert not np.any(
        ar.fit_amortizer([(Q[:, :, :1], K[:, :, :1])], n_slices=4, ridge=0.0).weights
    )  # nothing varies
    twice = ar.SufficientStatistics(np.ones((1, 2, 2)), np.ones((1, 2)), np.ones(1), 1)  # one feature, twice
    np.testing.assert_allclose(twice.ridge(0.0), [[0.5, 0.5]])


@pytest.mark.parametrize(("module", "dtype"), [("numpy", "float16"), ("torch", "float16"), ("torch", "bfloat16")])
def test_half_precision_trains_saves_predicts_and_calibrates(module, dtype, tmp_path):
    xp = array_module(module)
    half, single = (getattr(xp, name) for name in (dtype, "float32"))
    model = ar.Transformer.create(SMALL, SINKHORN, xp=xp)
    model = model.__class__(SMALL, tree_map(lambda p: xp.astype(p, half), model.params), model.attentions)
    seen = []
    settings = ar.TrainingSettings(epochs=8, learning_rate=1e-5)
    trained, history = ar.train(
        model, IMAGES, LABELS, settings, label=None, evaluate=lambda m: seen.append(m) or {}
    )
    assert all(p.dtype == half for m in (trained, *seen) for p in leaves(m.params))
    master = model.__class__(SMALL, tree_map(lambda p: xp.astype(p, single), model.params), model.attentions)
    _, expected = ar.train(master, IMAGES, LABELS, settings, label=None)
    assert [record["loss"] for record in history] == [record["loss"] for record in expected]  # as in float32
    trained.save(tmp_path / "model")
    loaded = ar.load_model(tmp_path / "model", backend=module)
    a, b = ar.predict(trained, IMAGES).astype("float32"), ar.predict(loaded, IMAGES).astype("float32")
    np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())  # eight bits
    q, k = (xp.astype(from_numpy(x, xp), half) for x in (Q, K))
    amortizer = ar.fit_amortizer([(q, k)], n_slices=4, n_iter=3)
    again = ar.recalibrate(amortizer, [(q, k)])
    assert np.all(amortizer.r_squared > 0.5) and np.all(again.r_squared > 0.5)
    assert to_numpy(q).dtype == ("float32" if dtype == "bfloat16" else "float16")


@pytest.mark.filterwarnings("error")
def test_what_does_not_fit_into_half_precision_is_refused():
    v = np.full((1, 3, 2), 6e4, np.float16)
    q = np.zeros((1, 3, 2), np.float16)
    assert np.all(ar.softmax_attention(q, q, v) == v)  # the mean does
    with pytest.raises(FloatingPointError, match=r"does not fit into float16; convert the input to float32"):
        ar.attention_scores(np.full((1, 3, 2), 300, np.float16), np.full((1, 3, 2), 300, np.float16))


@pytest.mark.parametrize("transform", ["grad", "jit", "vmap"])
def test_what_jax_traces_is_refused_with_the_reason(transform):
    import jax
    import jax.numpy as jnp

    q, first = jnp.ones((2, 3, 4)), jnp.ones((3, 4))
    with pytest.raises(TypeError, match=r"q is traced by JAX \(jit, grad or vmap\), but its values are looked at"):
        getattr(jax, transform)(lambda a: ar.sinkhorn_attention(a, a, a).sum())(q)
    with pytest.raises(TypeError, match="v is traced by JAX"):
        jax.jit(lambda a: ar.softmax_attention(first, first, a))(first)
