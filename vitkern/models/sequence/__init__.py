"""Models of token sequences: the encoder-decoder Transformer, BERT's encoder, and iGPT."""

from vitkern.models.sequence import bert, igpt, transformer

__all__ = ["bert", "igpt", "transformer"]
