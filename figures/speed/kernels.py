"""What the CUDA kernels take of a card, as the compiler says, for two cards; and the time that they need at least."""

import time
from importlib import metadata
from pathlib import Path

from asap_ref.fast.kernels.attention import LAUNCH_BOUND
from asap_ref.fast.kernels.build import BACKWARD, FORWARD, chosen, longest_slice
from asap_ref.lab.kernel_time import HERTZ, MULTIPROCESSORS, instruction_mix, least_seconds
from asap_ref.lab.nvrtc import CARDS, SORTED, compiled, resources
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

BUILDS = [  # computed in, stored in, dimension of queries and of values
    ("float32", "float32", 64),
    ("float32", "float16", 64),
    ("float32", "bfloat16", 64),
    ("float32", "float32", 128),
    ("float64", "float64", 64),
]
PROBLEMS, SIZES, T = 8, (1024, 4096), 20
CLASSES = {  # compute capabilities, cards among them: KiB of shared memory a block may have (CUDA programming guide)
    "9.0, 10.0: H100, H200, B200": 227,
    "8.0: A100": 163,
    "8.6, 8.9, 12.0: A10, L4, RTX 30 to 50": 99,
    "7.0: V100": 96,
    "7.5: T4": 64,
}
PASSES = {  # launches of lse and of attend
    "lse": (1, 0),
    "attend, which is softmax": (0, 1),
    "ASAP, its prediction left out": (1, 1),
    f"Sinkhorn, T = {T}": (2 * T, 1),
}


def measure():
    """Compile everything by NVRTC, from NVIDIA's wheels; needs no card."""
    rows = []
    for real, store, d in BUILDS:
        for card, limit in CARDS.items():
            for parts in (FORWARD, BACKWARD):
                build = chosen(real, store, d, d, limit, parts)
                rows += [
                    {"store": store, "d": d, "card": card, "tile": build.rows, "kernel": kernel} | took._asdict()
                    for kernel, took in sorted(resources(build, card).items())
                ]
    record = {"nvrtc": metadata.version("nvidia-cuda-nvrtc-cu12"), "rows": rows, "estimate": _estimate()}
    return record | {"seconds": [_seconds(parts) for parts in (FORWARD, BACKWARD)]}


def _seconds(parts):
    """CPU time that compiling float32, d = 64, takes for an H100."""
    text, start = chosen("float32", "float32", 64, 64, CARDS["sm_90"], parts).source(), time.process_time()
    compiled(text, "sm_90")
    return time.process_time() - start


def _estimate():
    """Count instructions and bound the times of float32, d = 64, on an H100."""
    mix = instruction_mix(chosen("float32", "float32", 64, 64, CARDS["sm_90"]))
    least = {name: [1e3 * least_seconds(mix[name], PROBLEMS, n, n) for n in SIZES] for name in mix}
    ms = {
        name: [lse * one + attend * other for one, other in zip(least["lse"], least["attend"], strict=True)]
        for name, (lse, attend) in PASSES.items()
    }
    return {"mix": mix, "ms at least": ms}


def draw(record, folder):
    """Write two tables: a row a kernel, a column a build; and the estimated times."""
    builds = list(dict.fromkeys((row["store"], row["d"], row["card"]) for row in record["rows"]))
    found = {(row["kernel"], row["store"], row["d"], row["card"]): row for row in record["rows"]}
    lines = [["kernel", *(f"{store}, d = {d}, {card}" for store, d, card in builds)]]
    for kernel in dict.fromkeys(row["kernel"] for row in record["rows"]):
        lines.append([kernel, *(_cell(found[kernel, *build]) for build in builds)])
    text = markdown_table(lines) + (
        "\nRegisters of a thread / KiB of shared memory of a block, and in brackets the bytes that a thread spills, if "
        f"any; 64 x 64 scores a block unless another tile is given; slices sort {SORTED} tokens. float16 and bfloat16 "
        f"are computed in float32. Compiled by NVRTC {record['nvrtc']} for an A100 (sm_80) and an H100 (sm_90), "
        "not run. The first call of a process with other dtypes or dimensions compiles them: that took NVRTC "
        f"{record['seconds'][0]:.1f} s forward and {record['seconds'][1]:.1f} s backward (float32, d = 64, time of one "
        "core); CuPy keeps what it has compiled on disk.\n\n"
    )
    text += _reach()
    text += _estimated(record["estimate"])
    path = Path(folder) / "kernels.md"
    files.save_text(path, text)
    return [path]


def _reach():
    """A table of the longest slices and largest dimensions that are held in shared memory, by class of card."""
    lines = [
        ["compute capability", "KiB a block", "dtype", "longest n", "largest d, forward", "largest d, backward"]
    ]
    for name, kilobytes in CLASSES.items():
        for real in ("float32", "float64"):
            largest = [_largest(real, 1024 * kilobytes, parts) for parts in (FORWARD, BACKWARD)]
            cells = [f"{d} ({of_64} in tiles of 64)" for d, of_64 in largest]
            lines.append([name, kilobytes, real, longest_slice(real, 1024 * kilobytes), *cells])
    return markdown_table(lines) + (
        "\nUp to which sizes the kernels go, computed, not run. Beyond the longest n, the larger of the two lengths, "
        "ASAP is predicted in the array form, and the kernels do the rest; softmax and Sinkhorn have no longest n. "
        "d is the dimension of queries, keys and values; beyond the largest the array form does all. "
        "Shared memory alone decides which tile is taken, 64 x 64 or 32 x 32 scores a block: smaller ones, of less "
        "than 64 threads, are not made, and which is quickest was not tuned. float16 and bfloat16 are as float32.\n\n"
    )


def _largest(real, limit, parts):
    """(The largest dimension, the largest in tiles of 64), multiples of 8."""
    builds = {d: chosen(real, real, d, d, limit, parts) for d in range(8, 2049, 8)}
    return max(d for d, build in builds.items() if build), max(
        (d for d, build in builds.items() if build and build.rows == 64), default=0
    )


def _estimated(estimate):
    lines = [["estimated, not measured: milliseconds at least", *(f"n = {n}" for n in SIZES)]]
    lines += [[name, *(f"{ms:.2f}" for ms in row)] for name, row in estimate["ms at least"].items()]
    each = "; ".join(
        f"{name} {', '.join(f'{count} {kind}' for kind, count in counts.items())}"
        for name, counts in estimate["mix"].items()
    )
    return markdown_table(lines) + (
        f"\n{PROBLEMS} heads x n x 64, float32, an H100, from the instruction mix. A thread's work on a tile of 64 x "
        f"64 scores is, in the PTX, {each} (of shared memory). Each takes a slot of issue, and an "
        "exponential three more that are not counted, since denormals are kept. Assumed: "
        f"{MULTIPROCESSORS} multiprocessors, 128 lanes each, {HERTZ / 1e9:.2f} GHz, which make the 67 TFLOP/s of the "
        "data sheet; a slower clock takes longer in proportion. It is a lower bound: loading tiles, addresses, "
        "barriers, waits for memory, launches, and for ASAP the prediction, which goes through tokens only, come "
        f"on top. Where Sinkhorn has more than {LAUNCH_BOUND} scores, as at n = {SIZES[-1]}, the array form is taken "
        "instead, unless there is no room for it. Times on a card are outstanding.\n"
    )


def _cell(row):
    spilled = f" ({row['spilled']})" if row["spilled"] else ""
    tile = "" if row["tile"] == 64 else f", {row['tile']} x {row['tile']}"
    return f"{row['registers']} / {row['shared'] / 1024:.0f}{spilled}{tile}"
