"""Problems of every operator, and how results are judged: `problems`, `check_cases`, `dropout`, `verify` (`sizes`)."""
