"""The command line: a module for each command, which imports what is heavy when it runs."""

COLLECTION = 100_000
"""New objects between two searches for cycles. A plan has millions and no cycle: searching took up to a fifth of a large one."""
