"""The info command: what a checkpoint is and what running it takes, from its headers alone."""
