"""models: the models that vitkern builds itself, with their parameters and input size."""

import fnmatch

from vitkern.report import BadInput, near_matches, table


def add_arguments(parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a glob such as 'swin*' or 'google/*'")


def run(arguments) -> int:
    from vitkern.models import describe, hub, list_models

    pattern = arguments.pattern
    names = list_models(pattern)
    if pattern != "*":
        names += fnmatch.filter(hub.CONFIGS, pattern)
    if not names:
        raise BadInput(
            f"no model matches {pattern!r}.{near_matches(pattern.strip('*'), [*list_models(), *hub.CONFIGS])}"
        )
    rows = []
    for name in names:
        found = describe(name)
        rows.append((name, f"{found.parameters:,}", found.input_rule, found.num_classes, found.family))
    print(table(("model", "parameters", "input", "classes", "family"), rows))
    return 0
