"""The header of a GGUF file: metadata, and the location of each tensor.

value is one metadata value; cursor reads a header with bounds checks; header is one file; model_files are the files of
one model; write makes a header.
"""
