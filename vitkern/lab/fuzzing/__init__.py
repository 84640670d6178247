"""Random problems and named edge cases: `fuzz` (`random_cases`, `shrink`) and `edges` (`edge_cases`), both made of
`cases` in `layouts`, which `run_case` runs.
"""
