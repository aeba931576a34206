"""Pipeline parallelism: a model whose layers are split over the ranks of an MPI job.

launch (the environment that mpirun sets), world (messages and failure), split (layers to ranks), orders (messages of
the first rank), relay (activations), follower (the other ranks), engine (the first rank), shared_checkpoint (files
distributed over machines).
"""
