"""Transformers that choose tokens: which of an image stay, and which of its pixels a query looks at."""
