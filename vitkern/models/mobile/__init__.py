"""Small networks for phones: convolutions with a transformer in their later stages."""
