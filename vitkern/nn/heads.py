"""How the channels of a module split into heads."""


def head_dim(module: str, channels: int, num_heads: int, name: str = "dim") -> int:
    """Channels of one of ``num_heads`` heads; ``name`` is that of the argument which gave ``channels``.

    Raises:
        TypeError: no integers.
        ValueError: heads that do not divide the channels, or none.
    """
    for argument, value in ((name, channels), ("num_heads", num_heads)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{module}: {argument} is no integer: got {value!r}; expected an int above 0.")
    if num_heads <= 0 or channels <= 0 or channels % num_heads:
        raise ValueError(
            f"{module}: channels do not split into heads: got {name}={channels}, num_heads={num_heads}; expected a "
            "divisor, both above 0. Take other heads, or channels that are a multiple of them."
        )
    return channels // num_heads
