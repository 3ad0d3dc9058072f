"""The end of a search: choose, open the sealed test split once, measure with intervals, compare with baselines."""
