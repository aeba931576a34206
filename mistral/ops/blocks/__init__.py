"""Weights in the block formats of GGUF files.

kind names the formats; legacy, k_quants and iq4 dequantize blocks of one family each; block_quantized is a matrix of
blocks; quantize makes one.
"""
