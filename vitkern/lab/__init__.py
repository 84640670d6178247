"""Kernels without a GPU: a repaired interpreter, a memory sanitizer, ahead-of-time compilation and a static budget.

`interpreter` and `sanitizer` need TRITON_INTERPRET=1 in the environment before Python starts; `compile` needs it unset.
"""
