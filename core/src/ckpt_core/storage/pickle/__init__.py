"""Pickles, read by a machine that executes nothing and written for the frameworks that load them."""
