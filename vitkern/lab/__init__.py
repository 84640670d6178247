"""The kernel laboratory: what can be known of a kernel without a GPU. ``python -m vitkern lab`` sums up what has run.

`interpreting` runs kernels on a CPU as a GPU would, `proving` judges what they give. The parts stand on these two:
`fuzzing` (fuzz, edges), `addressing` (offsets), `differentiating` (gradients), `breaking` (mutants), and `compiling`
(compile), which needs neither. All parts leave a record: `records`.

What interprets kernels needs TRITON_INTERPRET=1 in the environment before Python starts; compile needs it unset.
"""
