"""The interactive command: a conversation at a terminal or through a pipe."""
