"""Names that people know from compressed-tensors and LLM Compressor, and the shipped spec that each means."""

from __future__ import annotations

PRESETS: dict[str, str] = {}
