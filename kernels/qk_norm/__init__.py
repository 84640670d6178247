"""Attention of rows that are normalised in the tile: the norm and its gradients, the loop forward and backward."""
