"""The streaming (flash) loop, forward and backward, and its hooks: where a token lives, how a logit changes."""
