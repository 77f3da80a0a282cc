"""System services: files, locks, signals, random numbers, devices and the Hugging Face Hub."""

__version__ = "0.1.0"
