"""The command line: a module for each command, which imports what is heavy when it runs."""
