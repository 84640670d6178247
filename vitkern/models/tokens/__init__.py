"""Transformers on tokens that are not patches of one size: gathered from an image, or dropped on the way."""
