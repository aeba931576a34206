"""Rows that come and go: the cache they share a model through, sampling, and the scheduler that moves them on."""
