"""The transformer, readable alone. It knows neither files nor MPI nor how its arithmetic is done.

In reading order: args (the architecture), parameters (its tensors), rope, layers, moe, kv_cache (what rows remember),
transformer (all of it together), fused_block (a block in two operators where the backend has them).
"""
