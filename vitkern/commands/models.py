"""models: the models that vitkern builds itself: a list of them, or all that is known of one."""

import fnmatch

from vitkern.report import BadInput, near_matches, table


def add_arguments(parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a glob such as 'swin*' or 'google/*'")
    parser.add_argument("--describe", metavar="NAME", help="one model: its costs, kernels, arguments, paper")


def run(arguments) -> int:
    from vitkern.models import describe, list_models
    from vitkern.models.registry import hub_names

    if arguments.describe is not None:
        return _describe(arguments.describe)
    pattern = arguments.pattern
    names = list_models(pattern)
    if pattern != "*":
        names += fnmatch.filter(hub_names(), pattern)
    if not names:
        raise BadInput(
            f"no model matches {pattern!r}.{near_matches(pattern.strip('*'), [*list_models(), *hub_names()])}"
        )
    rows = []
    for name in names:
        found = describe(name)
        rows.append((name, f"{found.parameters:,}", found.input_rule, found.num_classes, found.family))
    print(table(("model", "parameters", "input", "classes", "family"), rows))
    return 0


def _describe(name: str) -> int:
    import torch

    from vitkern.models import count_costs, create_model, describe

    try:
        found = describe(name)
        with torch.device("meta"):
            model = create_model(name)
    except (ValueError, NotImplementedError) as error:
        raise BadInput(str(error).removeprefix("create_model: ")) from None
    inputs = getattr(model, "longest_inputs", model.example_inputs)()
    costs = count_costs(model, *inputs)
    kernels = ", ".join(f"{op} x {count}" for op, count in sorted(costs.kernels.items())) or "none"
    print(found)
    of = "" if found.input_size else f" for {' and '.join(str(x.shape[1]) for x in inputs)} tokens"
    print(f"  GMACs       {costs.macs / 1e9:.2f}{of}")
    print(f"  activations {costs.activations / 1e6:.2f} M")
    print(f"  operators   {kernels}")
    return 0
