"""Many sequences at once: the rows of the KV cache, sampling, speculative decoding, and the scheduler."""
