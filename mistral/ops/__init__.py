"""The arithmetic of the model, behind one interface.

interface declares what a backend provides; portable is the readable definition in MindSpore operators; native has CPU
kernels for the same functions, which build compiles on first use; backend chooses between the two; device starts
MindSpore and has the lock that lets one thread at a time compute; float8 and the folder blocks decode quantized weights
and make them.
"""
