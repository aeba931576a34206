"""The files that weights lie in: safetensors, and PyTorch's zip with its pickle, read without running anything."""
