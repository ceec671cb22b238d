"""What is learned, in which order: each strategy is a plan and nothing else."""
