"""Strategies: which parameters train, in which order; each is a plan and nothing else."""
