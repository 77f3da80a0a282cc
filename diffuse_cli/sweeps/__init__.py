"""Many ways to draw from one model, measured: which sampler and steps, which EMA length."""
