"""A model whose layers are spread over the ranks of an MPI job.

launch (what mpirun says), world (messages and failure), split (layers to ranks), orders and stage (what a rank does),
engine (what the first rank drives), shared_checkpoint (files spread over machines).
"""
