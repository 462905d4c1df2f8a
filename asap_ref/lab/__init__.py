"""Experiments, races and figures: data sets, the main job, the benchmark. Nothing of the method depends on it."""
