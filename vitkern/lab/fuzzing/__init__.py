"""Random problems and named edge cases: `fuzz` (`drawing`, `shrink`) and `edges` (`edge`), both made of `case` in
`layouts`, which `run_case` runs.
"""
