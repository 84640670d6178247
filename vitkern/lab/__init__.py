"""The kernel laboratory: what can be known of a kernel without a GPU. ``python -m vitkern lab`` sums up what has run.

The ground: `interpreter` (repaired: `bfloat16`, `hardware`), `sanitizer` (`memory`, `programs`), `patches`.
Problems and their judgement: `problems`, `check_cases`, `dropout`, `verify` (`sizes`).
fuzz and edges: `cases`, `layouts`, `run_case`; `random_cases`, `shrink`; `edge_cases`.
offsets: `offset_case` and its list `offset_cases` (`offset_attention`, `offset_sparse`), `offset_coverage`.
gradients: `wide`, `gradient_cases`, `gradient_check`.
mutants: `mutations` (`mutation_operators`, `launcher_operators`, `mutation_scope`), `planting`, `nursery`, `judge` with
its lists `quick` and `checklists`, `survivors`, `breaks`.
compile: `compiled` (`sass`, `amdgcn`), `launches`, `matrix`, `workers`, `golden`, `exceptions`; `budget`, `work`,
`estimate`.
All parts leave a record: `records`.

What interprets kernels needs TRITON_INTERPRET=1 in the environment before Python starts; compile needs it unset.
"""
