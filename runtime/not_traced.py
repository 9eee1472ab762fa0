"""What torch.compile asks while it traces and takes as it is, once torch's tracer is there (`after_import`).

`torch.compiler.assume_constant_result` imports that tracer, which takes as long as the rest of torch: where
nothing is compiled nobody waits for it.
"""

from __future__ import annotations

from typing import cast

import torch

from .packed import Packed

torch.compiler.assume_constant_result(cast(property, Packed.has_kernel).fget)  # type: ignore[no-untyped-call]
