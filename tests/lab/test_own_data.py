"""Data of one's own: what files are read, how they are split, and what is said of files that are something else."""

import numpy as np
import pytest

from asap_ref import Architecture, Attention, Sequences, Transformer
from asap_ref.lab.own_data import all_of, for_model, kept_for_testing, read, table_of_predictions, to_train

rng = np.random.default_rng(0)
X, NAMES = rng.standard_normal((30, 4, 2)).astype("f4"), np.asarray(["no", "yes"] * 15)


def npz(folder, **arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def text_file(folder, content, name="own.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_mask_and_lengths_say_the_same(tmp_path):
    lengths = np.arange(30) % 5
    masked = read(npz(tmp_path, X=X, y=NAMES, mask=np.arange(4) < lengths[:, None])).inputs
    counted = read(npz(tmp_path, X=X, y=NAMES, lengths=lengths)).inputs
    np.testing.assert_array_equal(masked.mask, counted.mask)
    np.testing.assert_array_equal(masked.vectors, X)
    assert isinstance(read(npz(tmp_path, X=X, y=NAMES)).inputs, np.ndarray)


def test_integers_are_read_as_numbers(tmp_path):
    assert read(npz(tmp_path, X=np.ones((2, 3, 1), np.int8))).inputs.dtype == np.float32


def test_a_tenth_is_kept_and_everything_comes_back_in_order(tmp_path):
    data = to_train(npz(tmp_path, X=X, y=NAMES), vocabulary=9, length=3)
    assert data.classes == ("no", "yes") and len(data.test_labels) == 3 and len(data.train_labels) == 27
    inputs, labels = all_of(data)
    np.testing.assert_array_equal(inputs, X)
    np.testing.assert_array_equal(np.asarray(data.classes)[labels], NAMES)
    padded, _ = all_of(to_train(npz(tmp_path, X=X, y=NAMES, lengths=np.full(30, 3)), vocabulary=9, length=3))
    assert isinstance(padded, Sequences) and padded.mask.sum() == 90
    np.testing.assert_array_equal(padded.vectors, X)
    assert kept_for_testing(2).sum() == 1 and kept_for_testing(1).sum() == 0
    assert 0 < np.mean(labels[kept_for_testing(30)]) < 1  # labels that alternate do not fall on one side


def test_texts_have_the_vocabulary_of_their_training_part(tmp_path):
    lines = "".join(f"the film is {'good' if i % 2 else 'bad'},{i % 2}\n" for i in range(40))
    path = text_file(tmp_path, f"text,label\n{lines}")
    data = to_train(path, vocabulary=20, length=5)
    assert data.classes == ("0", "1") and set(data.vocabulary) == {"the", "film", "is", "good", "bad"}
    architecture = Architecture(vocabulary=7, length=5, n_classes=2, width=8, n_layers=1, n_heads=2)
    model = Transformer.create(architecture, Attention("softmax"), classes=data.classes, words=data.vocabulary)
    model.save(tmp_path / "model.npz")
    loaded = Transformer.load(tmp_path / "model.npz")
    assert (loaded.classes, loaded.words) == (data.classes, data.vocabulary)
    unseen = text_file(tmp_path, "id\ttext\n7\tThe unseen film\n", name="other.tsv")
    inputs, labels = all_of(for_model(unseen, loaded))
    np.testing.assert_array_equal(np.asarray(loaded.words)[inputs[0, [0, 2]] - 2], ["the", "film"])
    assert inputs[0, 1] == 1 and labels.tolist() == [-1]


def test_predictions_are_a_table_of_names_and_probabilities():
    table = table_of_predictions(np.asarray([[0.0, 0.0], [0.0, 200.0]], "f4"), ("a, b", "c"))
    assert table == 'label,probability\n"a, b",0.5000\nc,1.0000\n'


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f / "absent.npz", "no file"),
        (lambda f: text_file(f, "x", "own.txt"), "expected an .npz with arrays X and y, or a .csv or .tsv"),
        (lambda f: text_file(f, "x", "own.npz"), "is no .npz of plain arrays"),
        (lambda f: npz(f, X=np.asarray([{}]), y=[1]), "is no .npz of plain arrays"),
        (lambda f: npz(f, y=NAMES), "holds y; expected X"),
        (lambda f: npz(f, X=X, y=NAMES, z=X), "holds X, y, z; expected X"),
        (lambda f: npz(f, X=X[..., 0], y=NAMES), r"save X\[..., None\]"),
        (lambda f: npz(f, X=X.astype(complex), y=NAMES), "expected numbers"),
        (lambda f: npz(f, X=X, y=NAMES[:4]), r"y has shape \(4,\), expected \(30,\)"),
        (lambda f: npz(f, X=X[:0], y=NAMES[:0]), "no examples"),
        (lambda f: npz(f, X=X, y=NAMES, mask=np.ones((30, 4))), "mask is float64"),
        (lambda f: npz(f, X=X, y=NAMES, lengths=np.full(30, 5)), "of at most 4"),
        (lambda f: npz(f, X=X, y=NAMES, lengths=np.full(30, 4), mask=np.ones((30, 4), bool)), "one of them"),
        (lambda f: npz(f, X=X), "has no labels to train on"),
        (lambda f: npz(f, X=X, y=np.zeros(30)), "every label is '0.0'"),
        (lambda f: text_file(f, "words,label\nx,1\n"), r"names the columns \['words', 'label'\]"),
        (lambda f: text_file(f, "text,label\na,b,1\n"), "more or fewer fields"),
        (lambda f: text_file(f, "text,label\na\n"), "more or fewer fields"),
        (lambda f: text_file(f, b"text,label\n\xff,1\n"), "is not UTF-8"),
        (lambda f: text_file(f, ""), "expected text"),
    ],
)
def test_files_that_are_something_else_are_refused(write, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_train(write(tmp_path), vocabulary=9, length=3)


def test_a_model_refuses_data_that_it_does_not_read(tmp_path):
    vectors = Transformer.create(Architecture(features=2, n_classes=2), Attention("softmax"), classes=("a", "b"))
    with pytest.raises(ValueError, match="label 'no' is none of the model's classes: a, b"):
        for_model(npz(tmp_path, X=X, y=NAMES), vectors)
    with pytest.raises(ValueError, match="holds texts, but the model reads vectors"):
        for_model(text_file(tmp_path, "text\nx\n"), vectors)
    unnamed = Transformer.create(Architecture(features=2, n_classes=2), Attention("softmax"))
    with pytest.raises(ValueError, match="y is <U3, but the model has no names of classes"):
        for_model(npz(tmp_path, X=X, y=NAMES), unnamed)
    nameless = Transformer.create(Architecture(vocabulary=5, length=2), Attention("softmax"))
    with pytest.raises(ValueError, match="saved without its words"):
        for_model(text_file(tmp_path, "text\nx\n"), nameless)
