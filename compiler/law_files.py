"""Laws by name, or from a YAML file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..runtime.errors import RequestError
from ..runtime.laws import LAWS, Law, find_law, law_from_document
from .documents import read_document


def load_law(name: str | Path, baseline: str | None = None) -> Law:
    """A shipped law by name, or the law in a YAML file (a name with a dot or a slash).

    baseline: the representation whose multipliers are 1.
    Raises RequestError for an unknown name, a malformed file, and a baseline that the law has no use for.
    """
    conventions = {} if baseline is None else {"baseline": baseline}
    if not any(mark in str(name) for mark in "./\\"):
        return find_law(str(name), conventions)
    law = law_from_document(read_document(Path(name)).data, str(name))
    if law.name in {shipped.name for shipped in LAWS}:
        raise RequestError(
            f"a shipped law is called {law.name!r} already", where=str(name), advice="give yours another name"
        )
    return law.with_conventions(conventions)


def law_text(law: Law) -> str:
    """A law as the YAML file that `load_law` reads."""
    document: dict[str, Any] = {
        key: value for key, value in law.to_document().items() if value not in ("", [], {})
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
