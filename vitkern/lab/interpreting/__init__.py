"""The ground: Triton's interpreter, repaired to compute as a GPU does, and watched.

`interpreter` (`bfloat16`, `hardware`), `sanitizer` (`memory`, `programs`), `patches`; `wide`, in which single precision
is double.
"""
