"""Attention within groups that fit one tile: a whole row of scores at once."""
