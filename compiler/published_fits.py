"""The shipped published fits, read once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import yaml

from .. import specs
from ..runtime.laws.published import PublishedFit, read_published

LIST_FITS = "`rhoc laws published` lists them"


@lru_cache(maxsize=1)
def published_fits() -> Mapping[str, PublishedFit]:
    """The shipped published fits by name. Raises RequestError for a malformed file."""
    found = [read_published(yaml.safe_load(f.read_text(encoding="utf-8")), f.name) for f in specs.published()]
    return {fit.name: fit for fit in found}
