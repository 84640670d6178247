"""How the results of a `problem` are judged: `verify` (`sizes`), and `dropout`, which has no formula; `integration`."""
