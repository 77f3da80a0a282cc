"""Measure many ways to draw from a model: sampler and steps (`tune`), EMA length (`ema`)."""
