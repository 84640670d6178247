"""Kernels over rows of channels: matrix products with epilogues, activations."""
