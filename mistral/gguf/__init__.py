"""What the header of a GGUF file says: names and values, and which tensors lie where.

value is one of the values; cursor reads the header field by field within bounds; header is one file; model_files are
those that make up a model.
"""
