"""ASAP costs little more than softmax at any length; truncated Sinkhorn trades error for time; no plan is kept."""

from asap_ref.lab import benchmark, races
from asap_ref.lab.bars import (
    ASAP,
    LOG,
    MIB,
    REFINED,
    SCALING,
    SDPA,
    TILES,
    TORCH_LOG,
    markdown,
    memory,
)
from asap_ref.support import files, presentation

LINES = {  # in time against length: colour, line, marker
    "product, exp, product": ("black", ":", ""),
    "softmax": ("softmax", "-", "s"),
    SDPA: ("softmax", "--", "s"),
    ASAP: ("asap", "-", "*"),
    SCALING: ("sinkhorn", "-", "o"),
    LOG: ("sinkhorn", "--", "o"),
    TORCH_LOG: ("light", "--", "o"),
    TILES: ("sinkhorn", ":", "o"),
}


def measure():
    """Run the benchmark: some minutes."""
    return benchmark.bench(None)


def draw(record, folder):
    """Write all tables and the figure."""
    whole = folder / "bench.md"
    files.save_text(whole, markdown(record))
    fig, axes = presentation.subplots(2, 2, figsize=(10.0, 7.6))
    _against_length(axes[0, 0], record["frozen"], "Attention forward, 8 heads")
    _pareto(axes[0, 1], record["frozen"])
    _memory(axes[1, 0], record)
    _against_length(axes[1, 1], record["training"], "Training step, 8 heads")
    return [whole, *presentation.save(fig, folder / "bench")]


def _against_length(axis, found, title):
    for name, (colour, line, marker) in LINES.items():
        points = [(race["n"], row["median"]) for race in found for row in race["rows"] if row["name"] == name]
        if points:
            n, seconds = zip(*points, strict=True)
            axis.loglog(
                n, [1000 * s for s in seconds], line, marker=marker, color=presentation.COLOURS[colour], label=name
            )
    axis.set(title=title, xlabel="tokens n", ylabel="milliseconds")
    axis.legend(fontsize=8)


def _pareto(axis, found):
    rows = [row for race in found if race["n"] == races.PARETO for row in race["rows"]]
    families = {
        "Sinkhorn, T = 1, 2, 3, 5, 7": ("sinkhorn", [f"Sinkhorn, T = {t}" for t in races.TRUNCATIONS]),
        "ASAP, 4 to 32 slices, and refined": (
            "asap",
            [ASAP, REFINED, *(f"ASAP, {count} slices" for count in races.SLICES)],
        ),
        "softmax": ("softmax", ["softmax"]),
    }
    for label, (mechanism, names) in families.items():
        points = [(1000 * row["median"], row["output_error"]) for row in rows if row["name"] in names]
        if points:
            marker = presentation.MARKERS[mechanism]
            axis.semilogy(*zip(*points, strict=True), marker, color=presentation.COLOURS[mechanism], label=label)
    axis.set(
        title=f"Error against time, n = {races.PARETO}",
        xlabel="milliseconds",
        ylabel="output error, relative to the teacher",
    )
    if axis.lines:
        axis.legend(fontsize=8)


def _memory(axis, record):
    for name in ("softmax", ASAP, SCALING):
        colour, line, marker = LINES[name]
        lengths = sorted({row["n"] for row in record["memory"] if (row["what"], row["name"]) == ("forward", name)})
        found = [memory(record, "forward", name, n) / MIB for n in lengths]
        axis.loglog(lengths, found, line, marker=marker, color=presentation.COLOURS[colour], label=name)
    lengths = sorted({row["n"] for row in record["memory"] if row["what"] == "forward"})
    plan = [4 * n * n / MIB for n in lengths]
    axis.loglog(lengths, plan, ":", color=presentation.COLOURS["black"], label="one plan, float32")
    axis.set(title="Memory beyond the inputs, one head", xlabel="tokens n", ylabel="MiB at the peak")
    axis.legend(fontsize=8)
