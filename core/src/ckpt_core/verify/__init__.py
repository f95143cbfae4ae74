"""Checking a conversion after the fact: against its receipt, against its source, and by running both models."""
