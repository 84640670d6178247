"""Attention between channels: a D x D matrix of each image and head, summed over tokens, and what it mixes."""
