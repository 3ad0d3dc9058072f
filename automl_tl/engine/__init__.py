"""Runs functions on slots, each in the slot's own child process, and outlives them. Knows nothing of learning."""
