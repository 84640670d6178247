"""Transformers of several resolutions: stages of fewer tokens and more channels."""
