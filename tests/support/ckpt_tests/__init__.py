"""What several test modules need: goldens, tiny transformers models, folders as values."""
