"""Calibration on Dask: the same weights from every source, with workers lost, in memory that does not grow."""

import itertools
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster

from asap_ref import Attention, fit_amortizer
from asap_ref.calibration import fit as calibration
from asap_ref.calibration.sources import Mapped
from asap_ref.model.architecture import Architecture
from asap_ref.model.compilation import compile_model
from asap_ref.model.transformer import Transformer

pytest.importorskip("distributed", reason="needs Dask: pip install asap-ref[distributed]")
zarr = pytest.importorskip("zarr", reason="needs zarr: pip install asap-ref[distributed]")
import dask.array as da  # noqa: E402 - only where Dask is

PLACES = np.random.default_rng(0).standard_normal((2, 2, 6, 4))
FIT = {"n_slices": 3, "n_iter": 5, "epsilon": 0.7}


def sequences(seed, count=20):
    """Queries and keys of 2 heads, 6 tokens: a place and some noise."""
    drawn = np.random.default_rng(seed).standard_normal((2, count, 2, 6, 4))
    return tuple(2 * PLACES[:, None] + 0.4 * drawn)


BATCHES = [sequences(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def threads():
    """Give a cluster that is a thread of this process: quick to start."""
    with cluster(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


@pytest.fixture(scope="module")
def processes():
    """Give a cluster of two processes, as in earnest."""
    with cluster(n_workers=2, threads_per_worker=1) as client:
        yield client


def same(found, expected, rtol=1e-10):
    # sums of float64 in another order: 1e-15, times what the solve makes of it
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=rtol * np.abs(expected.weights).max())
    np.testing.assert_array_equal(found.family("slices").directions, expected.family("slices").directions)
    np.testing.assert_allclose(found.r_squared, expected.r_squared, rtol=1e-10)


# ----------------------------------------------------------------------------------------------------- sources


def a_list(folder):
    return BATCHES


def an_iterator(folder):
    return iter(BATCHES)


def a_generated_sequence(folder):
    return Mapped(sequences, range(len(BATCHES)))


def npz_files(folder):
    for i, (q, k) in enumerate(BATCHES):
        np.savez(folder / f"{i}.npz", k=k, q=q)
    return sorted(folder.glob("*.npz"))


def npy_files(folder):
    for i, batch in enumerate(BATCHES):
        np.save(folder / f"{i}.npy", np.stack(batch))
    return [str(path) for path in sorted(folder.glob("*.npy"))]


def stacked():
    return [np.concatenate(arrays) for arrays in zip(*BATCHES, strict=True)]


def a_zarr_group(folder):
    group = zarr.open(folder / "qk.zarr", mode="w")
    for name, array in zip(("k", "q"), reversed(stacked()), strict=True):
        # 30 does not divide 140: the last batch is smaller
        group.create_array(name, data=array, chunks=(30, 1, 6, 4))
    return group


def the_path_of_a_zarr_group(folder):
    a_zarr_group(folder)
    return folder / "qk.zarr"


def zarr_arrays(folder):
    group = a_zarr_group(folder)
    return group["q"], group["k"]


def dask_arrays(folder):
    q, k = stacked()
    return da.from_array(q, chunks=(30, 1, 6, 4)), da.from_array(k, chunks=(70, 2, 3, 4))


SOURCES = [
    a_list,
    an_iterator,
    a_generated_sequence,
    npz_files,
    npy_files,
    a_zarr_group,
    the_path_of_a_zarr_group,
    zarr_arrays,
    dask_arrays,
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("objective", ["regression", "kl"])
def test_every_source_gives_the_same_weights_with_a_client_and_without(objective, source, tmp_path, threads):
    settings = {**FIT, "objective": objective}
    expected = fit_amortizer(BATCHES, **settings)
    same(fit_amortizer(source(tmp_path), **settings), expected)
    same(fit_amortizer(source(tmp_path), **settings, client=threads), expected)


def test_masks_and_principal_directions_travel_too(tmp_path, threads):
    mask = np.random.default_rng(1).random((20, 1, 6)) < 0.8
    mask[..., 0] = True
    for i, (q, k) in enumerate(BATCHES):
        np.savez(tmp_path / f"{i}.npz", q=q, k=k, key_mask=mask, query_mask=mask)
    settings = {**FIT, "quadratic": 2}
    expected = fit_amortizer([(*batch, mask, mask) for batch in BATCHES], **settings)
    same(fit_amortizer(sorted(tmp_path.glob("*.npz")), **settings, client=threads), expected)


SMALL = Architecture(image=(6, 6), patch=2, n_classes=3, width=12, n_layers=2, n_heads=3)
TEACHER = Transformer.create(SMALL, Attention("sinkhorn", {"n_iter": 4, "epsilon": 0.5}), dtype="float64")
IMAGES = np.random.default_rng(0).standard_normal((120, 6, 6))
COMPILATION = {"n_slices": 4, "candidates": None, "quadratic": 2, "moments": 0}


def npy_inputs(folder):
    for i, images in enumerate(np.split(IMAGES, 4)):
        np.save(folder / f"{i}.npy", images)
    return sorted(folder.glob("*.npy"))


def zarr_inputs(folder):
    return zarr.create_array(folder / "images.zarr", data=IMAGES, chunks=(30, 6, 3), overwrite=True)


def dask_inputs(folder):
    return da.from_array(IMAGES, chunks=(30, 6, 3))


def same_attentions(found, expected):
    for a, b in zip(found.attentions, expected.attentions, strict=True):
        # what the first layer's rounding becomes in the second's activations
        same(a.settings["amortizer"], b.settings["amortizer"], rtol=1e-9)


def test_a_model_is_compiled_on_the_workers(threads):
    batches = np.split(IMAGES, 4)
    expected, expected_report = compile_model(TEACHER, batches, **COMPILATION)
    found, report = compile_model(TEACHER, batches, **COMPILATION, client=threads)
    same_attentions(found, expected)
    np.testing.assert_allclose(
        [layer["r_squared"] for layer in report], [layer["r_squared"] for layer in expected_report], rtol=1e-9
    )


@pytest.mark.parametrize("source", [npy_inputs, zarr_inputs, dask_inputs], ids=lambda source: source.__name__)
def test_a_model_is_compiled_on_inputs_that_are_not_in_memory(source, tmp_path, threads):
    expected, _ = compile_model(TEACHER, np.split(IMAGES, 4), **COMPILATION)
    same_attentions(compile_model(TEACHER, source(tmp_path), **COMPILATION)[0], expected)
    same_attentions(compile_model(TEACHER, source(tmp_path), **COMPILATION, client=threads)[0], expected)


def test_an_iterable_is_read_as_it_is_used(threads):
    read = []

    def batches():
        for batch in itertools.cycle(BATCHES):
            read.append(len(read))
            yield batch
            if len(read) == 40:
                return

    ahead = []
    source = calibration.on_cluster(batches(), threads)
    whole = source._start
    source._start = lambda task: ahead.append(len(read)) or whole(task)
    source.total(len)
    assert len(read) == 40 and ahead[:3] == [4, 8, 12]  # 4 a thread, one group ahead


def test_the_order_of_sums_does_not_depend_on_the_number_of_threads(threads, monkeypatch):
    numbers = [[x] for x in np.random.default_rng(0).standard_normal(30)]  # lists count as in memory
    totals = set()
    for workers in (1, 2, 5):
        source = calibration.on_cluster(numbers, threads)
        monkeypatch.setattr(source, "_threads", lambda n=workers: n)
        totals.add(source.total(lambda batch: batch[0]))
    assert len(totals) == 1 and totals.pop() != sum(x for [x] in numbers)  # another order: it would show


def test_a_batch_is_laid_out_as_if_it_had_travelled(threads):
    batch = np.zeros((3, 2)).T, np.zeros((5, 2))[:, 1]
    source = calibration.on_cluster([batch, batch], threads)
    layouts = source.total(lambda arrays: [x.flags.c_contiguous for x in arrays])
    assert layouts == [True] * 4 and all(x.flags.c_contiguous for x in source.first())


def test_dask_shows_its_own_progress(threads, capsys):
    fit_amortizer(BATCHES, **FIT, client=threads, progress=True)
    assert "100% Completed" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["regression", "kl"])
def test_two_processes_find_the_weights_of_one(objective, processes):
    settings = {**FIT, "objective": objective}
    same(fit_amortizer(BATCHES, **settings, client=processes), fit_amortizer(BATCHES, **settings))


def dies_once(marker, seed):
    """Make a batch; the first time, kill the worker instead."""
    if seed == 4:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return sequences(seed)
        os.kill(os.getpid(), signal.SIGKILL)
    return sequences(seed)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_worker_killed_in_a_pass_changes_nothing(tmp_path, processes):
    undisturbed = fit_amortizer(Mapped(sequences, range(7)), **FIT, client=processes)
    batches = Mapped(partial(dies_once, str(tmp_path / "died")), range(7))
    found = fit_amortizer(batches, **FIT, client=processes)
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(found.weights, undisturbed.weights)  # the tree is the same: to the last bit
    same(found, fit_amortizer(BATCHES, **FIT))


def images_or_death(marker, images):
    """Return the images; the first time, kill the worker instead."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return images


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_worker_killed_while_a_model_is_compiled_changes_nothing(tmp_path, processes):
    expected, _ = compile_model(TEACHER, np.split(IMAGES, 4), **COMPILATION)
    undisturbed, _ = compile_model(TEACHER, np.split(IMAGES, 4), **COMPILATION, client=processes)
    batches = Mapped(partial(images_or_death, str(tmp_path / "died")), np.split(IMAGES, 4))
    found, _ = compile_model(TEACHER, batches, **COMPILATION, client=processes)
    assert (tmp_path / "died").exists()
    same_attentions(found, expected)
    for a, b in zip(found.attentions, undisturbed.attentions, strict=True):
        np.testing.assert_array_equal(a.settings["amortizer"].weights, b.settings["amortizer"].weights)


def peak_since_reset():
    """Bytes: the high-water mark of this process's resident set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def large(seed):
    return sequences(seed, count=3000)  # 2.3 MB


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux gives it")
def test_memory_of_a_worker_does_not_grow_with_the_data(processes):
    settings = {**FIT, "n_iter": 2}
    peaks = []
    for count in (4, 4, 40):  # the first time, buffers are set up
        processes.run(lambda: Path("/proc/self/clear_refs").write_text("5"))
        fit_amortizer(Mapped(large, range(count)), **settings, client=processes)
        peaks.append(max(processes.run(peak_since_reset).values()))
    batch = sum(x.nbytes for x in large(0))
    assert peaks[2] - peaks[1] < 4 * batch  # of the 18 batches more that each worker saw


# ------------------------------------------------------------------------------------------------------- mistakes


def test_without_a_client_dask_is_not_imported():
    code = (
        "import sys, numpy as np; from asap_ref import fit_amortizer; "
        "fit_amortizer([np.random.default_rng(0).standard_normal((2, 9, 1, 5, 3))], n_slices=2); "
        "print([name for name in ('dask', 'distributed', 'zarr') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_mistakes_say_what_was_expected(tmp_path, threads, monkeypatch):
    with pytest.raises(TypeError, match=r"expected a dask.distributed.Client, got str"):
        fit_amortizer(BATCHES, client="tcp://localhost:8786")
    with pytest.raises(ValueError, match="batches is empty"):
        fit_amortizer([], client=threads)
    with pytest.raises(ValueError, match=r"rows, expected as many of each"):
        fit_amortizer((da.zeros((3, 1, 2, 2)), da.zeros((4, 1, 2, 2))))
    with pytest.raises(ValueError, match="expected arrays q and k"):
        fit_amortizer(zarr.open(tmp_path / "empty.zarr", mode="w"))
    np.savez(tmp_path / "x.npz", x=1)
    with pytest.raises(ValueError, match=r"x.npz has \['x'\], expected arrays q and k"):
        fit_amortizer([tmp_path / "x.npz"])
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"asap-ref\[distributed\]"):
        fit_amortizer(BATCHES, client=threads)
