"""Dask clusters of this machine; a test that asks for one is skipped where Dask is not installed."""

from contextlib import contextmanager

import pytest


@contextmanager
def cluster(*, n_workers, threads_per_worker, processes=True):
    """Client of a cluster of so many workers: processes, as in earnest, or threads of this one, quick to start."""
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install asap-ref[distributed]")
    workers = {"n_workers": n_workers, "threads_per_worker": threads_per_worker, "processes": processes}
    with distributed.LocalCluster(**workers, dashboard_address=":0") as made, distributed.Client(made) as client:
        yield client
