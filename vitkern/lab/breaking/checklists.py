"""What judges the mutants of each file of kernels/."""

from dataclasses import dataclass

from vitkern.lab.breaking.quick import HOPPER, LOCAL, MLPS, NORMS, SHORT, SPARSE, STREAMED, WINDOWS, Trials


@dataclass(frozen=True)
class Checks:
    """What judges the mutants of a file: ``trials``, then ``special`` (names of functions of `judge`), then, for
    those still alive, ``tests`` (files of tests/interpreter)."""

    trials: Trials
    special: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


_LOOP = Checks(STREAMED, ("dropout",), ("test_attention.py",))
_TILE = Checks(SHORT + WINDOWS[:8], (), ("test_short_attention.py", "test_window_attention.py"))
_WINDOW = Checks(WINDOWS + SHORT[:2] + STREAMED[:2], (), ("test_window_attention.py",))
_LOCAL = Checks(LOCAL, (), ("test_local_attention.py",))
_NORM = Checks(NORMS + MLPS[:5], (), ("test_layernorm.py", "test_layernorm_mlp.py"))
_MLP = Checks(MLPS, (), ("test_layernorm_mlp.py",))
CHECKS: dict[str, Checks] = {
    "rows/activations": _MLP,
    "attention": Checks(SHORT + STREAMED[:8], ("dropout",), ("test_attention.py",)),
    "rows/epilogues": _MLP,
    "loop/constants": _LOOP,
    "loop/heads": _LOOP,
    "machine/launch": Checks(HOPPER[:1], (), ("test_stream_hopper.py",)),
    "layernorm": _NORM,
    "local_attention": _LOCAL,
    "loop/locality": _LOCAL,
    "rows/layernorm": _NORM,
    "rows/matmul": _MLP,
    "rows/mlp": _MLP,
    "rows/tiles": _NORM,
    "layernorm_mlp": _MLP,
    "tile/relative_table": Checks(WINDOWS[:8], (), ("test_window_attention.py",)),
    "loop/scores": Checks(STREAMED + WINDOWS[:4] + SHORT[:1], (), ("test_attention.py", "test_window_attention.py")),
    "tile/short_attention": _TILE,
    "tile/short_attention_backward": _TILE,
    "sparse_attention": Checks(SPARSE, (), ("test_sparse_attention.py",)),
    "loop/stream": _LOOP,
    "loop/stream_axes": _LOCAL,
    "loop/stream_backward": _LOOP,
    "loop/stream_bias": Checks((STREAMED[1], *STREAMED[5:]), ("dropout",), ("test_attention.py",)),
    "loop/stream_hopper": Checks(HOPPER, (), ("test_stream_hopper.py",)),
    "machine/tiles": Checks(
        STREAMED + SHORT + WINDOWS[:4] + WINDOWS[-1:], ("dropout",), ("test_attention.py", "test_short_attention.py")
    ),
    "loop/tokens": Checks(SHORT[:1] + WINDOWS + STREAMED[:2], (), ("test_window_attention.py",)),
    "window_attention": _WINDOW,
}


def checks_of(file: str) -> Checks:
    """Of a file of kernels/; everything, for one that has no list of its own."""
    return CHECKS.get(file, Checks(SHORT + STREAMED + WINDOWS + LOCAL + SPARSE + NORMS + MLPS, ("dropout",)))
