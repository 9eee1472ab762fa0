"""Text token by token: decoders that keep the keys and values of what came before, packed."""
