"""The transformer, readable alone: independent of file formats, of MPI, and of the backend that does the arithmetic.

In reading order: args (the architecture), parameters (its tensors), rope, layers, moe and block (what a token passes
through), attention_plan (which keys it attends to), kv_cache (where they are stored), transformer (the whole model).
Supporting files: inputs (arguments, checked), fused_block (all blocks in one operator, where the backend has one).
The arithmetic is declared in mistral/ops/interface.py and defined in mistral/ops/portable.py.
"""
