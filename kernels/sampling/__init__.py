"""Sampling of images between their pixels: bilinear weights, its gradients in points and in pixels."""
