"""The README's figures: one function for each, computed by the package itself."""
