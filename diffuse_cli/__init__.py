"""Train, sample, measure and demonstrate denoising diffusion models on a folder of images."""

__version__ = "0.1.0"
