"""Model files: what a model is, and how it is stored."""
