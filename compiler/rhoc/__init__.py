"""rhoc, the rho compiler: write, train, pack and price compressed representations of PyTorch models.

Names are loaded on first use, so that `import rhoc` costs nothing and `rhoc --help` never pays for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rhoc.runtime.after_import import after_import

if TYPE_CHECKING:
    from rhoc.compiler.compile import Compiled as Compiled
    from rhoc.compiler.compile import compile as compile
    from rhoc.compiler.compile import save as save
    from rhoc.compiler.hf.pretrained import as_pretrained as as_pretrained
    from rhoc.compiler.spec import Spec as Spec
    from rhoc.compiler.spec import load_spec as load_spec
    from rhoc.runtime.errors import RhocError as RhocError
    from rhoc.runtime.load import load as load
    from rhoc.runtime.representation import Representation as Representation
    from rhoc.runtime.step_rules import attach as attach

_home = {
    "Compiled": "rhoc.compiler.compile",
    "Representation": "rhoc.runtime.representation",
    "RhocError": "rhoc.runtime.errors",
    "Spec": "rhoc.compiler.spec",
    "as_pretrained": "rhoc.compiler.hf.pretrained",
    "attach": "rhoc.runtime.step_rules",
    "compile": "rhoc.compiler.compile",
    "load": "rhoc.runtime.load",
    "load_spec": "rhoc.compiler.spec",
    "save": "rhoc.compiler.compile",
}
__all__ = [
    "Compiled", "Representation", "RhocError", "Spec", "as_pretrained", "attach", "compile", "load",
    "load_spec", "save",
]  # fmt: skip

# transformers learns to load packed models when it is imported
after_import("transformers.quantizers.auto", "rhoc.compiler.hf.quantizer")


def __getattr__(name: str) -> object:
    if name not in _home:
        raise AttributeError(f"module 'rhoc' has no attribute {name!r}; it has {', '.join(__all__)}")
    value: object = getattr(import_module(_home[name]), name)
    globals()[name] = value
    return value
