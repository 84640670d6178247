"""How the results of a `problem` are judged: `verify` (`sizes`) by a formula, which `grouping` helps with, `dropout`
without one; and `integration`, a call that PyTorch's own tools are tried on.
"""
