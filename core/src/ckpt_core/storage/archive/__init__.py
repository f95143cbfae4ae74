"""Files by name in a folder or an archive: tar, tar in gzip, and the directory of a zip."""
