"""A linear head on fixed features, in closed form."""
