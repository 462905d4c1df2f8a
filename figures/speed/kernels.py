"""What the CUDA kernels take of a card, as the compiler says: registers, spills and shared memory, for two cards."""

from importlib import metadata
from pathlib import Path

from asap_ref.fast.kernels.build import BACKWARD, FORWARD, chosen
from asap_ref.lab.nvrtc import CARDS, SORTED, resources
from asap_ref.support import files
from asap_ref.support.tables import markdown_table

BUILDS = [  # computed in, stored in, dimension of queries and of values
    ("float32", "float32", 64),
    ("float32", "float16", 64),
    ("float32", "bfloat16", 64),
    ("float32", "float32", 128),
    ("float64", "float64", 64),
]


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
    return {"nvrtc": metadata.version("nvidia-cuda-nvrtc-cu12"), "rows": rows}


def draw(record, folder):
    """Write the table: a row a kernel, a column a build."""
    builds = list(dict.fromkeys((row["store"], row["d"], row["card"]) for row in record["rows"]))
    found = {(row["kernel"], row["store"], row["d"], row["card"]): row for row in record["rows"]}
    lines = [["kernel", *(f"{store}, d = {d}, {card}" for store, d, card in builds)]]
    for kernel in dict.fromkeys(row["kernel"] for row in record["rows"]):
        lines.append([kernel, *(_cell(found[kernel, *build]) for build in builds)])
    text = markdown_table(lines) + (
        "\nRegisters of a thread / KiB of shared memory of a block, and in brackets the bytes that a thread spills, if "
        f"any; 64 x 64 scores a block unless another tile is given; slices sort {SORTED} tokens. float16 and bfloat16 "
        f"are computed in float32. Compiled by NVRTC {record['nvrtc']} for an A100 (sm_80) and an H100 (sm_90), "
        "not run.\n"
    )
    path = Path(folder) / "kernels.md"
    files.save_text(path, text)
    return [path]


def _cell(row):
    spilled = f" ({row['spilled']})" if row["spilled"] else ""
    tile = "" if row["tile"] == 64 else f", {row['tile']} x {row['tile']}"
    return f"{row['registers']} / {row['shared'] / 1024:.0f}{spilled}{tile}"
