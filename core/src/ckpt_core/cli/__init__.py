"""The command line: a module for each command, which imports what is heavy when it runs."""

COLLECTION = 2_000_000
"""New objects between two searches for cycles. A plan of 671B has as many and no cycle: searching took up to a fifth of it."""
