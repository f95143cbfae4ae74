"""The command line. Every command is a module of its own; what is heavy is imported when a command runs."""
