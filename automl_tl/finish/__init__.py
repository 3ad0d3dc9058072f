"""The end of a search: confirm, choose and refit; then open the sealed test split once, measure, compare."""
