"""Built-in heads, one module each."""
