"""The arithmetic of the model, behind one interface.

interface says what a backend provides; portable is the readable definition in MindSpore operators; native has CPU
kernels for the same, which build compiles on first use; backend chooses between the two; device starts MindSpore and
lets one thread at a time compute; float8 and the folder blocks say what quantized weights mean, and make them.
"""
