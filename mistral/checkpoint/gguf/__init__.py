"""A GGUF file as a checkpoint: its architecture, its tensors by the names of Mistral's own files."""
