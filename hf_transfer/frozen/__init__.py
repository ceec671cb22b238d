"""The frozen layers of a model, computed once."""
