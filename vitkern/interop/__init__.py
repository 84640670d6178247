"""Swaps modules of timm, torchvision and transformers for vitkern's, in place and reversibly.

No library is imported before a model uses it.
"""
