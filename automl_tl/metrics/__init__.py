"""F1 and its kin from counts, and their confidence intervals."""
