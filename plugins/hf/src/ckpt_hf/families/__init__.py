"""One module per group of families: config tables and tensor tables side by side."""
