"""What the builtin datasets are made of. Knows nothing of the other rooms."""
