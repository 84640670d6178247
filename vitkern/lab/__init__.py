"""The kernel laboratory: what can be known of a kernel without a GPU. ``python -m vitkern lab`` sums up what has run.

`specimens` holds what is known of each operator (a `specimen`), and nothing else knows one by name. `interpreting` runs
kernels on a CPU as a GPU would, `proving` judges what they give. The parts stand on these and walk the specimens:
`fuzzing` (fuzz, edges), `addressing` (offsets), `differentiating` (gradients), `breaking` (mutants), and `compiling`
(compile), which interprets nothing. All parts leave a record: `records`.

What interprets kernels needs TRITON_INTERPRET=1 in the environment before Python starts; compile needs it unset.
"""
