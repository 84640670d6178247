"""Transformers of one resolution: every block sees the same tokens."""
