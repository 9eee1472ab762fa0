"""C++ as it is compiled for processors that lack some of this one's instructions."""

from __future__ import annotations

from dataclasses import replace

from rhoc.runtime.native.build import Library, processor


def compiled_without(library: Library, flag: str) -> Library:
    """The library under a flag of GCC and Clang for x86 such as `-mno-avx512f`, optimised no more than tests need.

    Where this processor lacks those instructions anyway, that is the library itself.
    """
    instructions = flag.removeprefix("-mno-")
    if instructions not in processor().replace("_", "").split():  # the system says avx512_bf16
        return library
    return replace(library, name=library.name + flag, flags=(*library.flags, flag, "-O1"))
