"""Parts of `tools/fuzz.py`: how inputs are changed, and what they are given to."""
