"""The bench command: speed and memory as shares of what the machine allows."""
