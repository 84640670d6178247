"""Finite differences in double precision against every gradient: `gradients`, `gradient_case`, `gradient_check`."""
