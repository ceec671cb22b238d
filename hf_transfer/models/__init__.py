"""A pretrained network and its anatomy."""
