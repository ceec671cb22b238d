"""The flags of a run: one file a group, as dataclasses."""
