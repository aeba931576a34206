"""The bench command: speed and memory as shares of the machine's limits."""
