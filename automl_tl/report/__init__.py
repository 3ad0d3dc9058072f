"""What a person or a program reads of a run: `result.json`, the live display, the tables at the end."""
