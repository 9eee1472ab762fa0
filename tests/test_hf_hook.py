"""The finder that waits for transformers: it changes nothing but one import, and costs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(code: str, *path: Path) -> list[str]:
    start = f"import sys; sys.path[:0] = {[str(each) for each in path]!r};"
    process = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    return process.stdout.splitlines()


def test_importing_rhoc_imports_nothing_else() -> None:
    heavy = run(
        "import rhoc; print([n for n in ('torch', 'transformers', 'pydantic', 'numpy') if n in sys.modules])"
    )
    assert heavy == ["[]"]


def fake(tmp_path: Path) -> Path:
    """A package that looks like transformers to the finder, and nothing more."""
    for folder in ("transformers", "transformers/quantizers", "transformers/utils"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "transformers/quantizers/auto.py").write_text(
        "AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING = {}, {}\n"
    )
    (tmp_path / "transformers/quantizers/base.py").write_text(
        "class HfQuantizer:\n    def __init__(self, config, **kwargs): self.quantization_config = config\n"
    )
    (tmp_path / "transformers/utils/quantization_config.py").write_text(
        "class QuantizationConfigMixin: pass\n"
    )
    (tmp_path / "transformers/utils/hub.py").write_text("def cached_file(*args, **kwargs): return None\n")
    return tmp_path


def test_it_registers_when_transformers_comes_and_then_is_gone(tmp_path: Path) -> None:
    said = run(
        "import rhoc; first = lambda: [f.waits_for[0] for f in sys.meta_path if type(f).__name__ == 'AfterImport'];"
        "waiting = first(); import transformers; print(*waiting, 'rhoc.compiler.hf.quantizer' in sys.modules);"
        "import transformers.quantizers.auto as auto;"
        "print(auto.AUTO_QUANTIZER_MAPPING['rhoc'].__name__, auto.AUTO_QUANTIZATION_CONFIG_MAPPING['rhoc'].__name__);"
        "print(auto.__spec__.loader.__class__.__name__, any(n.startswith('transformers') for n in first()));"
        "from rhoc.runtime.after_import import after_import;"
        "[after_import('not.there.yet', 'json') for _ in range(2)]; print(first().count('not.there.yet'))",
        fake(tmp_path),
    )
    assert said == [
        "transformers.quantizers.auto False",
        "RhocQuantizer RhocConfig",
        "SourceFileLoader False",
        "1",
    ]


def test_a_transformers_that_is_there_already_is_told_at_once(tmp_path: Path) -> None:
    said = run(
        "import transformers.quantizers.auto as auto, rhoc; print(*auto.AUTO_QUANTIZER_MAPPING)",
        fake(tmp_path),
    )
    assert said == ["rhoc"]


def test_without_transformers_its_absence_is_what_is_said() -> None:
    said = run(
        "import rhoc, importlib\n"
        "try: importlib.import_module('transformers_that_is_not_there.quantizers.auto')\n"
        "except ModuleNotFoundError as error: print(error.name)"
    )
    assert said == ["transformers_that_is_not_there"]
