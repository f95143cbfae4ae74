"""The optimizer of Megatron in its files: read, and written."""
