"""Samples from a model: settings, conditioning, generation, and the job that writes them."""
