"""What loading a packed model takes of this process: `python -m tests.loading DIRECTORY ARGUMENTS WARM_UP`.

One JSON line: resident bytes that the loaded model takes, the most while it was loaded, and bytes of its
tensors. The architecture is on the meta device; every byte of the model is read once, so that nothing of it
stays out of memory.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import torch

from rhoc.runtime.load import load_packed

from .bench.gpt2_shape import Gpt2

SMALL = {"layers": 1, "width": 128, "heads": 2, "vocabulary": 64}
"""Arguments of the model that lies in `WARM_UP`."""


def main(directory: str, arguments: str, warm_up: str) -> None:
    """Load, and print."""
    with torch.device("meta"):
        load_packed(warm_up, Gpt2(**SMALL))  # what is imported on the way is not the model's
        architecture = Gpt2(**json.loads(arguments))
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    model = load_packed(directory, architecture)
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    read = sum(float(t.view(torch.uint8).max()) for t in tensors.values() if t.numel())
    gc.collect()
    document = {
        "resident": _resident("VmRSS") - before,
        "peak": _resident("VmHWM") - before,
        "tensors": sum(tensor.nbytes for tensor in tensors.values()),
        "read": read,
    }
    print(json.dumps(document))


def _resident(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
