"""Metrics of a model, with intervals and baselines."""
