"""Archives: tar, tar in gzip, and the directory of a zip."""
