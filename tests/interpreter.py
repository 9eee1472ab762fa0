"""What Triton 3.6's interpreter lacks: NumPy 2.4 takes no array of one number for an integer."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def take_bounds_from_arrays() -> None:
    """Let loops of interpreted kernels run to numbers that the interpreter holds as arrays of one."""
    patched = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda number: number.handle.data.item())

    interpreter._patch_lang_tensor = patch
