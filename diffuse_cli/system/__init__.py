"""What a program needs of its machine: files, locks, signals, random numbers, devices, the Hub."""

__version__ = "0.1.0"
