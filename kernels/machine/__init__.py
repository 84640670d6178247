"""What all kernels use: how one is started and for which GPU, block sizes, helpers on tiles."""
