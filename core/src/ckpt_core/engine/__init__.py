"""Moving the bytes: a plan of transfers, run by workers into a folder that gets its name when it is whole."""
