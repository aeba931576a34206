"""The choice of a backend, and its loading."""

from __future__ import annotations

import sys

from mistral.errors import InputError
from mistral.ops import build
from mistral.ops.interface import Ops

BACKENDS = ("auto", "native", "portable")
WORTH_BUILDING = 1 << 26  # bytes of a checkpoint from which the native backend is worth its build


def check_backend(name: str) -> None:
    """Raise InputError for a backend that does not exist. Loads nothing."""
    if name not in BACKENDS:
        raise InputError(f"not available; choose one of {', '.join(BACKENDS)}", option="backend", value=name)


def choose_backend(name: str, device: str, nbytes: int) -> str:
    """The backend that "auto" means for a checkpoint of `nbytes`; any other name is returned. Loads nothing.

    On a CPU it is native, unless the kernels have not been built and the checkpoint is too small to be worth it. If
    there is no compiler, or no folder for the kernels, a note on standard error says so, and it is portable.
    """
    check_backend(name)
    if name != "auto":
        return name
    if device != "CPU" or (nbytes < WORTH_BUILDING and not build.is_built()):
        return "portable"
    try:
        build.require_native()
    except InputError as error:
        print(f"note: slow: {error.with_flags()}", file=sys.stderr)
        return "portable"
    return "native"


def load_backend(name: str, precise: bool = False) -> Ops:
    """The named backend; loads MindSpore. Raises InputError if native cannot be built.

    `precise` keeps activations and cache of native float32, which portable always does.
    """
    check_backend(name)
    if name == "native":
        from mistral.ops.native import Native

        return Native(precise)
    from mistral.ops import portable

    return portable
