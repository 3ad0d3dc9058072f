"""Files whose names start with an underscore are no plugins."""

raise RuntimeError("must not be loaded")
