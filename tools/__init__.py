"""Scripts that made the data checked in with the project."""
