"""The benchmark on a GPU, CuPy beside torch on the same card: every table of it."""

from asap_ref.lab import bars, benchmark
from asap_ref.support import files


def measure():
    """Run the benchmark on CuPy; needs a CUDA device. ``asap-ref bench --backend cupy --out`` does the same."""
    return benchmark.bench(None, backend="cupy")


def draw(record, folder):
    """Write the tables."""
    path = folder / "bench_cupy.md"
    files.save_text(path, bars.markdown(record))
    return [path]
