"""Calibration on one and two Dask workers of one machine, and the memory of a worker while its data grow tenfold."""

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from asap_ref import Cumulants, Quadratic, Slices
from asap_ref.calibration.batch import statistics_of_batch
from asap_ref.calibration.cluster import on_cluster
from asap_ref.calibration.sources import in_process
from asap_ref.lab.machine import machine
from asap_ref.lab.stopwatch import reset_peak, resident
from asap_ref.method.slices import slice_directions
from asap_ref.support import files, presentation
from asap_ref.support.tables import markdown_table

SEQUENCES, HEADS, TOKENS, DIMENSION = 4, 32, 128, 64  # a batch of one layer
SLICES, RANK, ITERATIONS = 16, 8, 20
BATCHES, ROUNDS = 8, 3
GROWTH = (4, 12, 40)  # batches
LAYERS, TOTAL_TOKENS = 48, 10**9  # of the estimate
ONE_THREAD = {"ASAP_REF_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def measure():
    """Time a pass over files with one and two workers, and read the peak memory of the one as data grow."""
    from dask import config
    from dask.distributed import Client, LocalCluster

    directions, basis = slice_directions(DIMENSION, SLICES), np.eye(DIMENSION)[:, :RANK]
    families = (Slices(directions), Cumulants(), Quadratic(basis))
    one_batch = partial(statistics_of_batch, "regression", families, ITERATIONS, 1.0)
    seconds = {"in process": [], "1": [], "2": []}
    empty = {"1": [], "2": []}
    os.environ["ASAP_REF_THREADS"] = "1"  # one thread a process, everywhere
    cluster = partial(LocalCluster, threads_per_worker=1, dashboard_address=":0")
    with (
        tempfile.TemporaryDirectory() as folder,
        threadpool_limits(1),
        config.set({"distributed.nanny.pre-spawn-environ": ONE_THREAD}),
        cluster(n_workers=1) as single,
        Client(single) as client,
        cluster(n_workers=2) as pair,
        Client(pair) as both,
    ):
        paths = [write(Path(folder) / f"{i}.npy", i) for i in range(max(GROWTH))]
        clients = {"1": client, "2": both}
        for warm in range(ROUNDS + 1):  # the first round is not counted
            for name, found in seconds.items():
                found += [timed(paths[:BATCHES], one_batch, clients.get(name))][: int(warm > 0)]
            for name, found in empty.items():
                found += [timed(range(BATCHES), abs, clients[name])][: int(warm > 0)]
        memory = []
        for count in (GROWTH[-1], *GROWTH):  # the first time, buffers are set up
            memory.append(peak(client, paths[:count], one_batch))
        del memory[0]
    return {
        "settings": {
            "sequences": SEQUENCES,
            "heads": HEADS,
            "tokens": TOKENS,
            "dimension": DIMENSION,
            "slices": SLICES,
            "rank": RANK,
            "features": sum(family.count for family in families),
            "n_iter": ITERATIONS,
            "batches": BATCHES,
            "growth": GROWTH,
            "layers": LAYERS,
            "total_tokens": TOTAL_TOKENS,
        },
        "seconds": seconds,
        "seconds_of_empty_work": empty,
        "peak_bytes": memory,
        "machine": machine(),
    }


def write(path, seed):
    """Write one batch of queries and keys, float32."""
    shape = (2, SEQUENCES, HEADS, TOKENS, DIMENSION)
    np.save(path, np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
    return path


def timed(batches, function, client):
    """Seconds of a sum over batches."""
    source = on_cluster(batches, client) if client else in_process(batches)
    began = time.perf_counter()
    source.total(function)
    return time.perf_counter() - began


def peak(client, batches, function):
    """Bytes by which a worker's resident set rose above where it stood; Linux only."""
    client.run(reset)
    before = next(iter(client.run(resident, "VmRSS").values()))
    on_cluster(batches, client).total(function)
    return next(iter(client.run(resident, "VmHWM").values())) - before


def reset():
    """Give freed memory back, and let the high-water mark start again from here."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()


# --------------------------------------------------------------------------------------------------------- drawing


def draw(record, folder):
    """Write workers.md and the figure: batches a second against workers, peak memory against batches."""
    table = folder / "workers.md"
    files.save_text(table, markdown(record))
    settings = record["settings"]
    rates = {name: [settings["batches"] / s for s in found] for name, found in record["seconds"].items()}
    fig, (left, right) = presentation.subplots(1, 2, figsize=(9.5, 3.8))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    style = {"color": presentation.COLOURS["asap"], "marker": "o"}
    left.plot([1, 2], [middle["1"], middle["2"]], label="Dask", **style)
    for workers in ("1", "2"):
        left.plot([int(workers)] * len(rates[workers]), rates[workers], ".", color=style["color"], alpha=0.4)
    left.plot(
        [1, 2], [middle["1"], 2 * middle["1"]], "--", color=presentation.COLOURS["black"], label="twice as fast"
    )
    left.axhline(middle["in process"], color=presentation.COLOURS["softmax"], label="in process, without Dask")
    left.set(xticks=[1, 2], xlabel="workers of one thread", ylabel="batches a second", ylim=(0, None))
    left.legend(fontsize=9)
    size = batch_bytes(settings)
    right.plot(
        settings["growth"],
        [value / 2**20 for value in record["peak_bytes"]],
        "o-",
        color=presentation.COLOURS["asap"],
        label="of a worker",
    )
    right.plot(
        settings["growth"],
        [size * count / 2**20 for count in settings["growth"]],
        "--",
        color=presentation.COLOURS["black"],
        label="all of the data",
    )
    right.set(xlabel="batches", ylabel="peak of a worker above idle (MiB)", ylim=(0, None))
    right.legend(fontsize=9)
    gain, (first, *_, last) = middle["2"] / middle["1"], record["peak_bytes"]
    fig.suptitle(
        f"Two workers are {gain:.1f} times as fast as one; {settings['growth'][-1] // settings['growth'][0]} times "
        f"the data take {last / first:.1f} times the memory",
        fontsize=11,
    )
    return [table, *presentation.save(fig, folder / "workers")]


def batch_bytes(s):
    """Bytes of queries and keys of one batch, float32."""
    return 2 * s["sequences"] * s["heads"] * s["tokens"] * s["dimension"] * 4


def estimate(record):
    """Carry the measured cost of a batch over to a large model: {quantity: number}."""
    s = record["settings"]
    n, F = s["tokens"], s["features"]
    batches = s["layers"] * s["total_tokens"] / (s["sequences"] * n)  # of one layer each
    statistics_bytes = 8 * s["heads"] * (F * F + F + 1)
    # of a head and sequence: scores, two products a Sinkhorn iteration, the statistics (float64)
    flops = s["sequences"] * s["heads"] * (2 * n * n * s["dimension"] + 4 * s["n_iter"] * n * n + 2 * F * F * n)
    return {
        "batches": batches,
        "worker_days": batches * statistics.median(record["seconds"]["1"]) / s["batches"] / 86400,
        "flops": batches * flops,
        "activation_bytes": batches * batch_bytes(s),
        "statistics_bytes": batches * statistics_bytes,
        "statistics_bytes_of_a_batch": statistics_bytes,
        "result_bytes": s["layers"] * statistics_bytes,
        "worker_bytes": max(record["peak_bytes"]),
    }


def markdown(record):
    """Write what was measured, what limits it, and the estimate."""
    s, found = record["settings"], estimate(record)
    seconds = {name: statistics.median(x) / s["batches"] for name, x in record["seconds"].items()}
    idle = {name: statistics.median(x) / s["batches"] for name, x in record["seconds_of_empty_work"].items()}
    lines = [["where", "batches a second", "milliseconds a batch", "of these, Dask's own"]]
    for name, label in (("in process", "in process"), ("1", "1 worker"), ("2", "2 workers")):
        own = f"{1000 * idle[name]:.1f}" if name in idle else "0"
        lines.append([label, f"{1 / seconds[name]:.2f}", f"{1000 * seconds[name]:.0f}", own])
    gain = seconds["1"] / seconds["2"]
    share = idle["2"] / seconds["2"]
    streamed = [x / 2**20 for x in record["peak_bytes"]]
    growth = s["growth"]
    rows = [
        ["quantity", "estimate"],
        ["batches of one layer", f"{found['batches']:.2g}"],
        ["computing, one thread", f"{found['worker_days']:.0f} worker-days"],
        ["arithmetic (scores, Sinkhorn, statistics)", f"{found['flops']:.1e} flops"],
        ["queries and keys made on the workers, and let go", f"{found['activation_bytes'] / 1e12:.0f} TB"],
        ["statistics sent up the tree, at most", f"{found['statistics_bytes'] / 1e12:.0f} TB"],
        ["statistics that remain", f"{found['result_bytes'] / 1e6:.0f} MB"],
        ["memory of a worker, above idle and without the model", f"{found['worker_bytes'] / 2**20:.0f} MiB"],
    ]
    return (
        f"{markdown_table(lines)}\n"
        f"Regression on files of {s['sequences']} sequences x {s['heads']} heads x {s['tokens']} tokens x "
        f"{s['dimension']}, float32, {s['features']} features, T = {s['n_iter']}; one thread a process; medians of "
        f"{len(record['seconds']['1'])} interleaved passes of {s['batches']} batches, on "
        f"{record['machine']['processor']}. Two workers are {gain:.2f} times as fast as one. Dask's own work, timed "
        f"with batches that cost nothing, is {100 * share:.0f} % of a batch's time with two workers"
        + (
            "; the rest of what is missing to twice we put down to the machine, whose cores share memory and clock, "
            "and also run the scheduler and the caller.\n\n"
            if share < 0.1
            else ": larger batches would make it less.\n\n"
        )
        + f"Peak memory of a worker above idle, for {', '.join(map(str, growth))} batches of "
        f"{batch_bytes(s) / 2**20:.0f} MiB: {', '.join(f'{x:.0f}' for x in streamed)} MiB. The growth "
        f"we put down to partial sums, of {found['statistics_bytes_of_a_batch'] / 2**20:.1f} MiB each, about as "
        "many as the tree of sums is deep: the logarithm of the number of batches.\n\n"
        f"**An estimate, not a measurement**: {s['layers']} layers of {s['heads']} heads of dimension "
        f"{s['dimension']}, calibrated by regression on {s['total_tokens']:.0e} tokens, from the cost of a batch on "
        "one worker above. The forward pass of the model itself comes on top.\n\n"
        f"{markdown_table(rows)}\n"
        "The arithmetic of sorting, exponentials and features is not counted; the time contains it. Statistics are "
        f"{found['statistics_bytes_of_a_batch'] / 2**20:.1f} MiB a batch whatever its size, so a batch k times as "
        "large divides what is sent by k. A weight vector has "
        f"{s['features']} entries: far fewer tokens than these are enough to fit it.\n"
    )
