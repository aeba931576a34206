"""Weights in the block formats of GGUF files: what the bits of each mean.

kind names the formats; legacy, k_quants and iq4 widen blocks of one family each; block_quantized is a matrix of blocks.
"""
