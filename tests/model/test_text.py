"""Text: ids, vocabulary and batches; the model on padded ids; and that padding is invisible to it."""

from dataclasses import replace

import numpy as np
import pytest

from asap_ref import Attention, array_module, fit_amortizer, to_numpy
from asap_ref.lab.datasets import load_topics
from asap_ref.model.architecture import Architecture
from asap_ref.model.batching import batches, lengths, shuffled_batches, trimmed
from asap_ref.model.layers import cross_entropy
from asap_ref.model.optimiser import TrainingSettings, adamw, initial_moments, learning_rate_at
from asap_ref.model.text import build_vocabulary, encode, word_dropout
from asap_ref.model.training import accuracy, dropout_noise, loss_and_gradients, predict, train
from asap_ref.model.transformer import Transformer
from asap_ref.support.arrays import sum_rows
from asap_ref.support.trees import flatten, place, unflatten

SMALL = Architecture(vocabulary=12, length=7, n_classes=3, width=12, n_layers=2, n_heads=3)
SINKHORN = Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5})
rng = np.random.default_rng(0)
IDS = np.asarray(
    [[3, 4, 3, 11, 0, 0, 0], [1, 2, 5, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9, 9], [7, 0, 0, 0, 0, 0, 0], [0] * 7],
    np.int32,
)
LABELS = np.asarray([0, 2, 1, 1, 0])


def small_amortizer(**options):
    q, k = rng.standard_normal((2, 8, SMALL.n_heads, SMALL.n_tokens, SMALL.width // SMALL.n_heads))
    return fit_amortizer([(q, k)], n_slices=4, n_iter=4, epsilon=0.5, **options)


AMORTIZER = small_amortizer()
ASAP = Attention("asap", {"amortizer": AMORTIZER})
ATTENTIONS = {  # of the model, layer by layer
    "softmax": [Attention("softmax")],
    "sinkhorn": [SINKHORN],
    "asap": [ASAP],
    "refined asap": [Attention("asap", {"amortizer": small_amortizer(quadratic=2, refine=1)})],
    "sliced": [Attention("sliced", {"temperature": 0.5})],
    "initial": [Attention("initial", {"start": "gaussian", "epsilon": 0.5})],
    "one-sided": [Attention("one-sided", {"amortizer": AMORTIZER})],
    "mixed": [SINKHORN, Attention("mixed", {"parts": [(SINKHORN, [1]), (Attention("softmax"), [0, 2])]})],
}


def small_model(*attentions):
    return Transformer.create(SMALL, attentions[0], dtype=np.float64).with_attention(*attentions)


# ----------------------------------------------------------------------------------------------------- the model


def dropout(share=0.3):
    noise = dropout_noise(share, SMALL, IDS, np.random.default_rng(1))
    return place(noise, np, dtype=np.float64)


@pytest.mark.parametrize("noise", [None, dropout()], ids=["plain", "dropout"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_gradient_of_the_loss_is_its_derivative(name, noise):
    model = small_model(*ATTENTIONS[name])
    loss, grads = loss_and_gradients(model, IDS, LABELS, noise=noise)
    if noise is None:
        assert float(loss) == pytest.approx(float(cross_entropy(model(IDS), LABELS)), rel=1e-14)
    flat, gradients = flatten(model.params), flatten(grads)
    assert list(flat) == list(gradients)
    for key, value in flat.items():
        direction, h = rng.standard_normal(value.shape), 1e-6

        def along(t, key=key, value=value, direction=direction):
            moved = replace(model, params=unflatten({**flat, key: value + t * direction}))
            return float(loss_and_gradients(moved, IDS, LABELS, noise=noise)[0])

        numeric = (along(h) - along(-h)) / (2 * h)
        # h is small beside the embedding, 0.02, which the norms divide by; atol: rounding of a loss near 1 over h
        np.testing.assert_allclose(np.sum(gradients[key] * direction), numeric, rtol=1e-6, atol=1e-9, err_msg=key)


def test_dropout_scales_what_it_keeps_and_no_dropout_changes_nothing():
    noise = flatten(dropout())
    assert set(noise) == {"embedding", *(f"block{i}/{part}" for i in (0, 1) for part in ("heads", "mlp"))}
    for value in noise.values():
        assert value.shape == (5, 8, 12)
        np.testing.assert_allclose(np.unique(value), [0, 1 / 0.7], rtol=1e-7)
        assert np.mean(value == 0) == pytest.approx(0.3, abs=0.1)  # 480 draws: 5 standard deviations
    model = small_model(SINKHORN)
    plain, silent = (loss_and_gradients(model, IDS, LABELS, noise=noise) for noise in (None, dropout(0.0)))
    assert plain[0] == silent[0]
    for key, gradient in flatten(plain[1]).items():
        np.testing.assert_array_equal(flatten(silent[1])[key], gradient)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_padding_is_invisible(name):
    model = small_model(*ATTENTIONS[name])
    logits = model(IDS)
    _, grads = loss_and_gradients(model, IDS, LABELS)
    alone = [trimmed(IDS[i : i + 1]) for i in range(len(IDS))]
    assert [ids.shape[1] for ids in alone] == [4, 3, 7, 1, 1]
    # float64 rounding of sums of other lengths
    np.testing.assert_allclose(np.concatenate([model(ids) for ids in alone]), logits, rtol=1e-12, atol=1e-12)
    each = [flatten(loss_and_gradients(model, ids, LABELS[i : i + 1])[1]) for i, ids in enumerate(alone)]
    for key, gradient in flatten(grads).items():
        mean = sum(one[key] for one in each) / len(each)
        np.testing.assert_allclose(gradient, mean, rtol=1e-11, atol=1e-12, err_msg=key)
    assert np.all(flatten(grads)["embedding/word"][0] == 0)  # the row of padding is never used


def test_ten_training_steps_agree_with_torch_on_each_text_alone():
    torch = pytest.importorskip("torch", reason="torch, the judge, is not installed: pip install asap-ref[peers]")
    from torch_transformer import forward_text

    ids, labels = IDS[:4], LABELS[:4]  # torch's judge takes no empty text
    model = small_model(SINKHORN)
    settings = TrainingSettings(learning_rate=1e-2, weight_decay=0.1)
    params, moments = model.params, initial_moments(model.params)
    judge = {key: torch.tensor(value, requires_grad=True) for key, value in flatten(params).items()}
    groups = [
        {"params": [value for value in judge.values() if value.ndim == 2], "weight_decay": 0.1},
        {"params": [value for value in judge.values() if value.ndim != 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    texts = [torch.tensor([int(i) for i in row if i]) for row in ids]
    for step in range(1, 11):
        rate = learning_rate_at(step, 10, settings)
        loss, grads = loss_and_gradients(replace(model, params=params), ids, labels)
        params, moments = adamw(params, grads, moments, step, rate, weight_decay=0.1)

        for group in optimiser.param_groups:
            group["lr"] = rate
        expected = torch.nn.functional.cross_entropy(
            forward_text(judge, texts, SMALL.n_heads, 4, 0.5), torch.tensor(labels)
        )
        optimiser.zero_grad()
        expected.backward()
        for key, gradient in flatten(grads).items():
            np.testing.assert_allclose(gradient, judge[key].grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=key)
        optimiser.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-11)  # float64 rounding, grown over the steps
    for key, value in flatten(params).items():
        # atol: see the same test on images (a key's bias has a gradient of zero but for rounding)
        np.testing.assert_allclose(value, judge[key].detach().numpy(), rtol=1e-8, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("backend", ["torch", "array_api_strict", pytest.param("jax", marks=pytest.mark.slow)])
def test_logits_and_gradients_are_the_same_on_every_array_module(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    xp = array_module(backend)
    model = Transformer.create(SMALL, SINKHORN)
    there = replace(model, params=place(model.params, xp))
    expected, expected_grads = loss_and_gradients(model, IDS, LABELS)
    loss, grads = loss_and_gradients(there, there.place(IDS), xp.asarray(LABELS))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)  # float32 rounding
    for key, gradient in flatten(expected_grads).items():
        scale = np.abs(gradient).max() + 1e-6  # of a key's bias, whose gradient is rounding
        np.testing.assert_allclose(to_numpy(flatten(grads)[key]), gradient, atol=5e-5 * scale, err_msg=key)


def test_the_order_of_words_matters_and_their_table_is_shared():
    model = small_model(SINKHORN)
    assert np.abs(model(np.asarray([[3, 4]])) - model(np.asarray([[4, 3]]))).max() > 1e-6


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        (IDS.astype(float), TypeError, "must be integer token ids"),
        (IDS[0], ValueError, r"expected \(batch, n\) with n from 1 to 7"),
        (np.zeros((2, 8), int), ValueError, "n from 1 to 7"),
        (np.zeros((2, 0), int), ValueError, "n from 1 to 7"),
        (IDS + 1, ValueError, "ids from 1 to 12, expected 0"),
        (IDS - 1, ValueError, "ids from -1 to 10"),
    ],
)
def test_wrong_ids_are_refused(inputs, kind, message):
    with pytest.raises(kind, match=message):
        small_model(SINKHORN)(inputs)


def test_a_text_architecture_needs_a_length():
    with pytest.raises(TypeError, match="length must be an integer"):
        Architecture(vocabulary=10)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "array_api_strict"])
def test_rows_of_an_index_are_added_up(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    xp = array_module(backend)
    rows, index = rng.standard_normal((40, 3)).astype(np.float32), rng.integers(0, 6, 40).astype(np.int32)
    expected = np.zeros((9, 3), np.float32)
    np.add.at(expected, index, rows)
    found = to_numpy(sum_rows(xp.asarray(rows), xp.asarray(index), 9))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 sums of about seven normal numbers
    assert found.dtype == np.float32


# ------------------------------------------------------------------------------------------- words, ids, batches


def test_the_vocabulary_is_the_most_frequent_words():
    texts = ["a b b c c c", "c b d"]
    assert build_vocabulary(texts, 4) == ("b", "c")
    assert set(build_vocabulary(texts, 100)) == {"a", "b", "c", "d"}
    # what was not seen in training is the unknown word, case does not matter, and a text is cut
    np.testing.assert_array_equal(encode(["C x B b", ""], ("b", "c"), 3), [[3, 1, 2], [0, 0, 0]])


def test_batches_go_through_everything_once_and_pad_little():
    ids = load_topics().train_inputs
    for found in (batches(ids, 32), shuffled_batches(ids, 32, np.random.default_rng(0))):
        assert sorted(np.concatenate(found)) == list(range(len(ids)))
        assert len(found) == 32
        computed = sum(trimmed(ids[batch]).size for batch in found)
        assert computed < 1.15 * lengths(ids).sum() < 0.8 * ids.size
    first, second = (shuffled_batches(ids, 32, np.random.default_rng(seed)) for seed in (0, 1))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]


def test_predictions_come_back_in_the_order_of_the_texts():
    data = load_topics()
    model = Transformer.create(
        Architecture(vocabulary=300, length=24, n_classes=4, width=8, n_layers=1, n_heads=2), Attention("softmax")
    )
    ids = data.test_inputs
    alone = np.concatenate([model(ids[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(predict(model, ids, batch_size=16)[:20], alone, atol=1e-5)  # float32 rounding


def test_dropped_words_become_unknown_and_padding_stays():
    ids = load_topics().train_inputs
    dropped = word_dropout(0.3)(ids, np.random.default_rng(0))
    assert np.all((dropped == ids) | ((dropped == 1) & (ids != 0)))
    assert np.mean(dropped[ids > 1] == 1) == pytest.approx(0.3, abs=0.03)  # 4 standard deviations of 6,000 words
    np.testing.assert_array_equal(word_dropout(0.0)(ids, np.random.default_rng(0)), ids)


def test_a_small_model_learns_the_made_up_topics_and_resumes(tmp_path):
    data = load_topics()
    architecture = Architecture(vocabulary=300, length=24, n_classes=4, width=16, n_layers=1, n_heads=2)
    model = Transformer.create(architecture, Attention("sinkhorn", {"n_iter": 3}))
    settings = TrainingSettings(epochs=4, batch_size=32, learning_rate=1e-2, dropout=0.1)
    trained, history = train(model, data.train_inputs, data.train_labels, settings, augment=word_dropout(0.1))
    assert accuracy(trained, data.test_inputs, data.test_labels) > 0.8  # four topics: chance is 0.25

    def interrupt(_, calls=[]):  # noqa: B006 - the list counts the calls
        calls.append(None)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return {}

    arguments = (model, data.train_inputs, data.train_labels, settings)
    options = {"augment": word_dropout(0.1), "checkpoint": tmp_path / "run.npz"}
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, **options, evaluate=interrupt)
    resumed, resumed_history = train(*arguments, **options, resume=True)
    assert history == resumed_history
    for key, value in flatten(trained.params).items():
        np.testing.assert_array_equal(flatten(resumed.params)[key], value)
