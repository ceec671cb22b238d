"""The store on disk of what is computed once. It knows no models."""
