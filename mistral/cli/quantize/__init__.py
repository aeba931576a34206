"""The quantize command (command), and the calibration that measures importances on a text (calibrate)."""
