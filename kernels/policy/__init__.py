"""Attention whose keys count for what a policy says: the loop of attention with its row maxima and smoothed weights."""
