"""Quantised HF checkpoints: what their configs say, what their tensors are called, and how the weights come back.

A weight and its scales are one tensor to every other module: its values are computed while they are read. `schemes` has the arithmetic,
`spelling` what codes and scales are called in files, `methods` what the configs of the tools say, and `folding` puts them together.
"""
