"""Measure a model, or a folder of images, against real images."""
