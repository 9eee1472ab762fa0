"""rhoc, the rho compiler: write, train, pack and price compressed representations of PyTorch models.

Names are loaded on first use, so that `import rhoc` costs nothing and `rhoc --help` never pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rhoc.compiler.compile import Compiled as Compiled
    from rhoc.compiler.compile import compile as compile
    from rhoc.compiler.spec import Spec as Spec
    from rhoc.compiler.spec import load_spec as load_spec
    from rhoc.runtime.errors import RhocError as RhocError
    from rhoc.runtime.representation import Representation as Representation
    from rhoc.runtime.step_rules import attach as attach

_home = {
    "Compiled": "rhoc.compiler.compile",
    "Representation": "rhoc.runtime.representation",
    "RhocError": "rhoc.runtime.errors",
    "Spec": "rhoc.compiler.spec",
    "attach": "rhoc.runtime.step_rules",
    "compile": "rhoc.compiler.compile",
    "load_spec": "rhoc.compiler.spec",
}
__all__ = ["Compiled", "Representation", "RhocError", "Spec", "attach", "compile", "load_spec"]


def __getattr__(name: str) -> object:
    if name not in _home:
        raise AttributeError(f"module 'rhoc' has no attribute {name!r}; it has {', '.join(__all__)}")
    value: object = getattr(import_module(_home[name]), name)
    globals()[name] = value
    return value
