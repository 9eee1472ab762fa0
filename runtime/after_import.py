"""Import one module after another has been imported, whenever that is; until then it costs nothing.

transformers takes seconds to import, so `import rhoc` does not. It leaves a finder on `sys.meta_path` that
sees transformers' table of quantizers being imported, lets it happen, and has ours registered after.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(first: str, then: str) -> None:
    """Import `then` now if `first` is there already, else when it comes. Asking again changes nothing."""
    if first in sys.modules:
        import_module(then)
    elif not any(isinstance(f, AfterImport) and f.waits_for == (first, then) for f in sys.meta_path):
        sys.meta_path.insert(0, AfterImport(first, then))


class AfterImport(MetaPathFinder):
    """Finds nothing by itself: `first` is found as ever, and `then` is imported once it has run."""

    def __init__(self, first: str, then: str) -> None:
        self.waits_for = first, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the one module that this waits for, as other finders have it; None for all others."""
        first, then = self.waits_for
        if fullname != first:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return _followed(spec, then)
        return None


def _followed(spec: ModuleSpec, then: str) -> ModuleSpec:
    """The same spec, whose module is followed by an import of `then`."""
    loader = spec.loader
    if loader is not None:
        execute = loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            import_module(then)

        loader.exec_module = execute_both  # type: ignore[method-assign]
    return spec
