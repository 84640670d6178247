"""Faults planted in kernels and launchers: `mutants` (`mutations`: `mutation_operators`, `launcher_operators`,
`mutation_scope`), judged in processes of their own (`planting`, `nursery`, `judge` by what `checks`
says of a file). What lives for a reason is a `survivor`; `breaks` is a list.
"""
