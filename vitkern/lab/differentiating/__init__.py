"""Finite differences in double precision against every gradient: `gradients`, `gradient_cases`, `gradient_check`."""
