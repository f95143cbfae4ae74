"""Formats as plugins: their hooks, how they are found, what they are asked, and how their own framework judges."""
