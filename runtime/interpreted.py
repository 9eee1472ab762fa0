"""Whether Triton's kernels are interpreted here rather than compiled."""

from __future__ import annotations

import os


def interpreted() -> bool:
    """Whether Triton interprets kernels, on any device; it decides so when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
