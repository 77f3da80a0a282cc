"""Models: the description, conditioning and file format of a model."""
