"""Additive attention: sums over hidden features of tiles of scores, and of their gradients."""
