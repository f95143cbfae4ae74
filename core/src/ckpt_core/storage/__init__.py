"""Files of every container that checkpoints come in, read from headers alone and written at places known in advance."""
