"""The complete command: one prompt, or a file of them."""
