"""Training: from a configuration to a model file, step by step."""
