"""Built-in freezing strategies, one module each."""
