"""Datasets: sources, columns, labels, splits, checks, and their encoding for a model."""
