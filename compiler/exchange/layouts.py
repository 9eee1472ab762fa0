"""The layouts by name, and which of them a weight has. A new one is a file and a line here."""

from __future__ import annotations

from ...runtime.errors import RequestError
from .coded import DENSE_ADVICE, Held
from .floats import FloatQuantized
from .integers import IntQuantized, PackQuantized
from .layout import Layout
from .microscaling import Microscaling
from .nvfp4 import Nvfp4

LAYOUTS: tuple[Layout, ...] = (  # in the order in which a weight is tried
    IntQuantized(),
    PackQuantized(),
    Nvfp4(),
    Microscaling("mxfp4-pack-quantized", 4),
    Microscaling("mxfp6-pack-quantized", 6),
    Microscaling("mxfp8-quantized", 8),
    FloatQuantized(),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}
MIXED = "mixed-precision"


def layout_of(held: Held, with_inputs: bool) -> Layout:
    """The first layout that takes a weight. Raises RequestError when none does."""
    for layout in LAYOUTS:
        if layout.takes(held, with_inputs):
            return layout
    raise RequestError(
        f"{held.quantize} has no format there; floats are e4m3, e2m1 in groups of 16 under e4m3 scales "
        "(NVFP4), and e2m1, e2m3, e4m3 in groups of 32 under powers of two (MX)",
        advice=DENSE_ADVICE,
    )


def layout_named(name: str, num_bits: int, kind: str) -> Layout:
    """The layout of a name in a config; `naive-quantized` is either of the two of a byte a number.

    Raises RequestError for a name that is not known here.
    """
    if name == "naive-quantized" and num_bits <= 8:
        return BY_NAME["float-quantized" if kind == "float" else "int-quantized"]
    if name not in BY_NAME:
        raise RequestError(
            f"format {name!r} is not known (known: {', '.join(BY_NAME)})", advice="check config.json"
        )
    return BY_NAME[name]
