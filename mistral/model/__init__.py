"""The transformer, readable alone. It knows neither files nor MPI nor how its arithmetic is done.

In reading order: args (the architecture), parameters (its tensors), rope, layers, moe and block (what a token goes
through), attention_plan (which keys it attends to), kv_cache (where they are kept), transformer (all of it together).
Aside: inputs (what a caller may pass, checked), fused_block (blocks in one operator, where the backend has it).
The arithmetic is declared in mistral/ops/interface.py and defined in mistral/ops/portable.py.
"""
