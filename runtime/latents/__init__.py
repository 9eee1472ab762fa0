"""What may be trained in the place of a weight, one file each. A new one is a class in a file and a line."""

from __future__ import annotations

from .base import Latent
from .power import Power

LATENTS: tuple[type[Latent], ...] = (Power,)

__all__ = ["LATENTS", "Latent", "Power"]
