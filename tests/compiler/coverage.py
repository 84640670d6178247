"""Which block sizes of kernels/ and which hook combinations there are, and which ones launches ask for."""

import inspect
import itertools

import vitkern.kernels
from vitkern.kernels.machine.blocks import head_tile
from vitkern.kernels.machine.choices import answered, choices
from vitkern.kernels.sparse_attention import sparse_takes
from vitkern.kernels.tile.blocks import short_columns, short_tile
from vitkern.kernels.tile.short_attention import short_takes
from vitkern.lab.compiling.compiled import caught
from vitkern.lab.compiling.work import named
from vitkern.ops.additive_attention import MAX_BYTES as MAX_BYTES_OF_VALUES
from vitkern.ops.channel_attention import MAX_HEAD_DIM as MAX_CHANNELS_OF_A_HEAD
from vitkern.ops.local_attention import MAX_HEAD_DIM

HEAD_DIMS = (16, 20, 24, 32, 36, 40, 48, 64, 72, 80, 96, 104, 112, 128, 160, 192, 256)
TOKENS = (1, 7, 16, 49, 50, 64, 65, 128, 144, 197, 200, 256, 257, 577, 1024)
# What a parameter of a config function takes in models; one that is missing here fails `entries` by name.
DOMAIN = {
    "head_dim": HEAD_DIMS,
    "itemsize": (2, 4),
    "queries": TOKENS,
    "keys": TOKENS,
    "channels": (32, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 3072, 4096),
    **dict.fromkeys(
        ("hooked", "biased", "causal", "cosine", "dropout", "windows", "heavy", "walks", "backward", "channels_last"),
        (False, True),
    ),
}
vitkern.kernels.modules()
NAMES = tuple(name for name in choices() if name.endswith("_config"))


def _possible(name, values, arch):
    if values.get("dropout") and not values.get("hooked"):
        return False  # dropout is one of the hooks
    if name == "stream_hopper_config":
        return arch == 90 and head_tile(values["head_dim"]) in (64, 128)
    if name == "ragged_config":
        return values["head_dim"] <= MAX_HEAD_DIM
    if name.startswith("additive_"):
        return values["head_dim"] * values["itemsize"] <= MAX_BYTES_OF_VALUES
    if name.startswith("channel_"):
        return values["head_dim"] <= MAX_CHANNELS_OF_A_HEAD
    if name.startswith("sparse_"):
        return sparse_takes(values["keys"], values["head_dim"], values["itemsize"], arch)
    if not name.startswith("short_"):
        return True
    queries, keys = values["queries"], values["keys"]
    if values.get("cosine") and not (values["walks"] and queries == keys):
        return False  # windows have unit rows
    takes = short_takes(queries, keys, values["head_dim"], values["itemsize"], values["walks"])
    return takes and max(queries, keys) <= short_columns(arch)


def entry(name, arch, values, result):
    """What tells two entries apart: the function, the architecture, the element, the answer, and the head's tile, of
    which those up to 64 have all branches in common."""
    head = max(64, head_tile(values["head_dim"])) if "head_dim" in values else None
    return name, arch, values.get("itemsize"), head, result


def entries(arch):
    """Every answer that a config function has for ``arch``, with an example of what asks for it."""
    found = {}
    for name in NAMES:
        function = choices()[name]
        parameters = [p for p in inspect.signature(function).parameters if p != "arch"]
        short = name.startswith("short_")
        asked = ["queries", "keys", "head_dim", "itemsize", "walks"] if short else parameters
        asked += ["cosine"] if short and "cosine" in parameters else []
        for chosen in itertools.product(*(DOMAIN[parameter] for parameter in asked)):
            values = dict(zip(asked, chosen, strict=True))
            if not _possible(name, values, arch):
                continue
            if short:
                values["rows"], values["columns"] = short_tile(values["queries"], values["keys"])
            result = function(**{p: values[p] for p in parameters}, arch=arch)
            kept = {k: v for k, v in values.items() if k in (*parameters, "itemsize")}
            found.setdefault(entry(name, arch, kept, result), values)
    return found


def combination(kernel, args, constants):
    """What tells two kernels of one source apart, tile sizes aside: hooks, head, flags, and arguments that are None."""
    chosen = ("HEAD_DIM", "DIM", "ACT", "POST_NORM", "CAUSAL", "BIAS", "SHARED", "NORM")
    constants = named(constants)
    hooks = sorted((name, value.fn.__name__) for name, value in constants.items() if hasattr(value, "fn"))
    flags = [(name, constants[name]) for name in chosen if name in constants and not hasattr(constants[name], "fn")]
    missing = tuple(name for name, value in zip(kernel.arg_names, args, strict=False) if value is None)
    return kernel.fn.__name__, tuple(hooks), tuple(flags), missing


def asked(run, arch):
    """What ``run()`` asks for: (entries, combinations, constants of its launches)."""
    found, combinations, all_constants = set(), set(), []

    def noted(choice, *args, **kwargs):
        result = choice(*args, **kwargs)
        if choice.__name__ in NAMES:
            found.add(entry(choice.__name__, arch, inspect.signature(choice).bind(*args, **kwargs).arguments, result))
        return result

    def receive(kernel, grid, args, constants, options):
        combinations.add(combination(kernel, args, constants))
        all_constants.append(constants)

    with caught(receive, arch), answered(noted):
        run()
    return found, combinations, all_constants
