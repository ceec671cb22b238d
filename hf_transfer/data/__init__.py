"""Where examples come from, and how a model reads them."""
