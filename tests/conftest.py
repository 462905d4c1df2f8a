"""Workers of pytest-xdist share the processors: BLAS and the like have one thread in each, and in what they start."""

import os

from threadpoolctl import threadpool_limits

if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # of what is imported from now on
    threadpool_limits(1)  # of what has been: a plugin may have imported NumPy
