"""The figures of docs/IDEAS.md: one function for each, computed by the package itself."""
