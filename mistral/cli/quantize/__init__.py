"""The quantize command: command is it, and calibrate measures on a text how much each weight matters."""
