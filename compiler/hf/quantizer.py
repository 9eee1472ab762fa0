"""`quant_method: rhoc` for transformers: packed weights in the place of parameters before a checkpoint loads.

Importing this registers it. It needs transformers 4.45 or later, and of ours `rhoc.runtime` alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.hub import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...runtime.digest import digest_bytes
from ...runtime.errors import RequestError, WorkError
from ...runtime.holders import Holders
from ...runtime.packed import Packed, packed_weights
from ...runtime.packed_document import FORMAT, VERSION, PackedDocument, PackedWeight


class Method(str):
    """A name that is also asked for its `value`, as the members of transformers' enumeration are."""

    @property
    def value(self) -> str:
        """The name."""
        return str(self)


METHOD = Method("rhoc")
_AGAIN = "load another copy, or save the model again"


class RhocConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What config.json says of a packed model: its spec, and how each weight is packed.

    `version` is that of the packed document, `weights` as it has them, `aliases` other paths of packed
    weights that are tied, `digest` that of all packed tensors.
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        spec_digest: str = "",
        weights: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
        digest: str = "",
        version: int = VERSION,
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method = METHOD
        self.spec, self.spec_digest = dict(spec or {}), spec_digest
        self.weights, self.aliases = dict(weights or {}), dict(aliases or {})
        self.digest, self.version = digest, version

    def packed_weights(self) -> dict[str, PackedWeight]:
        """The weights by path. Raises RequestError for a version or data that are not known here."""
        document = {
            "format": FORMAT, "version": self.version, "spec": self.spec, "spec_digest": self.spec_digest,
            "weights": self.weights, "aliases": {}, "tensors_digest": self.digest, "torch": "", "caches": {},
            "centred": [],
        }  # fmt: skip
        try:
            return PackedDocument.from_document(document).weights
        except RequestError as error:
            raise error.at("quantization_config") from None


class RhocQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed weights where the checkpoint has their fields, and checks them once they are loaded."""

    requires_calibration = True  # a dense model is packed by rhoc.compile, not here
    requires_parameters_quantization = True  # transformers 4: have it ask `check_quantized_param`
    required_packages = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        self.quantization_config.packed_weights()

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """transformers 4: the dtype of what is dense."""
        return torch_dtype

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        weights = self.quantization_config.packed_weights()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        holders = Holders(model)
        for path, weight in weights.items():
            parameter = parameters.get(path)
            if parameter is None or tuple(parameter.shape) != weight.shape:
                found = "no such parameter" if parameter is None else f"{list(parameter.shape)}"
                raise RequestError(
                    f"the checkpoint has a weight of shape {list(weight.shape)}, the model {found}",
                    where=path, advice="load it into the architecture that it was saved from",
                )  # fmt: skip
            holders.pack(parameter, empty(weight).to(parameter.dtype))
        _leave_tied(model, {*weights, *self.quantization_config.aliases})
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for path, first in self.quantization_config.aliases.items():
            owner, _, leaf = path.rpartition(".")
            model.get_submodule(owner).register_module(leaf, model.get_submodule(first))
        packed = packed_weights(model)
        for each in packed.values():
            device = next(iter(each.fields().values())).device
            each.like = torch.empty(0, dtype=each.like.dtype, device=device)
        if digest_of(packed) != self.quantization_config.digest:
            _read_floats_again(model)
        if digest_of(packed) != self.quantization_config.digest:
            raise WorkError(
                "the packed weights are not those that were saved: truncated, changed or exchanged",
                advice=_AGAIN,
            )
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor of the checkpoint may have another shape than the model's: fields whose length
        depends on the weight (entropy codes)."""
        found = _field(model, param_name)
        return found is not None and found.variable

    def check_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """The same, under its name of transformers 4."""
        return self.param_needs_quantization(model, param_name)

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """transformers 4: put such a field where it belongs."""
        found = _field(model, param_name)
        assert found is not None
        found.owner._buffers[found.leaf] = param_value.to(target_device)

    def get_state_dict_and_metadata(
        self, model: nn.Module, *args: Any
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Every tensor once: those of tied packed weights under their first path."""
        other = tuple(f"{path}." for path in self.quantization_config.aliases)
        state = model.state_dict()
        return {name: tensor for name, tensor in state.items() if not (other and name.startswith(other))}, {}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Always."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Never: packed weights are constants."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Always."""
        return True


def empty(weight: PackedWeight) -> Packed:
    """A packed weight without memory, whose fields a checkpoint fills."""
    representation, dtype = weight.representation, weight.torch_dtype
    with torch.device("cpu"):  # loading makes every new tensor a meta tensor, and tables must be real
        layout = representation.layout(weight.matrix.shape(weight.shape), dtype)
    fields = {
        name: torch.empty(
            field.stored_shape, dtype=torch.uint8 if field.packed else field.dtype, device="meta"
        )
        for name, field in layout.items()
    }
    return Packed(representation, weight.shape, fields, dtype, weight.slots, weight.matrix)


def digest_of(packed: Mapping[str, Packed]) -> str:
    """Digest of every stored tensor with its name; of one that was never loaded, its name alone."""
    parts: list[bytes] = []
    for path, weight in sorted(packed.items()):
        for name, tensor in sorted(weight.fields().items()):
            parts.append(f"{path}.{name}".encode())
            if not tensor.is_meta:
                parts.append(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
    return digest_bytes(*parts)


@dataclass(frozen=True)
class Field:
    """Where a field of a packed weight is: a buffer `leaf` of `owner`; the dtype that it was stored in, and
    whether its length varies."""

    owner: nn.Module
    leaf: str
    dtype: torch.dtype
    variable: bool


def _fields(path: str, packed: Packed) -> dict[str, Field]:
    """The fields of a packed weight by their names in a checkpoint."""
    shape = packed.arrangement.shape(tuple(packed.shape))
    found = {}
    for name, layout in packed.representation.layout(shape, packed.encoded_dtype).items():
        folder, _, leaf = name.rpartition(".")
        dtype = torch.uint8 if layout.packed else layout.dtype
        found[f"{path}.{name}"] = Field(packed.get_submodule(folder), leaf, dtype, layout.variable)
    return found


def _field(model: nn.Module, name: str) -> Field | None:
    """The field of a packed weight that a name in a checkpoint means; None where it means another tensor."""
    module, parts = model, name.split(".")
    for depth, part in enumerate(parts):
        if isinstance(module, Packed):
            return _fields(".".join(parts[:depth]), module).get(name)
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    return None


def _read_floats_again(model: nn.Module) -> None:
    """Read fields that are floats from their file once more: transformers 4 casts all floats to one dtype."""
    floats = {
        name: field
        for path, packed in packed_weights(model).items()
        for name, field in _fields(path, packed).items()
        if field.dtype.is_floating_point
    }
    for file in _files(model):
        with safe_open(file, framework="pt") as opened:
            for name in floats.keys() & set(opened.keys()):
                owner, leaf = floats[name].owner, floats[name].leaf
                owner._buffers[leaf] = opened.get_tensor(name).to(getattr(owner, leaf).device)


def _files(model: Any) -> list[str]:
    """The safetensors files that a model came from, in a directory or in the cache of the Hub."""
    wanted: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, "local_files_only": True}
    wanted["revision"] = getattr(model.config, "_commit_hash", None)
    whole = cached_file(model.name_or_path, "model.safetensors", **wanted)
    if whole is not None:
        return [whole]
    index = cached_file(model.name_or_path, "model.safetensors.index.json", **wanted)
    if index is None:
        return []
    names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return [cached_file(model.name_or_path, name, **wanted) for name in sorted(names)]


def _leave_tied(model: nn.Module, packed: Collection[str]) -> None:
    """Have transformers neither tie nor initialise packed weights, and leave the places of tied ones free."""
    tied = getattr(model, "all_tied_weights_keys", None)
    for path in packed:
        owner, _, leaf = path.rpartition(".")
        holder = model.get_submodule(owner)
        holder._is_hf_initialized = True  # type: ignore[assignment]
        holder._parameters.pop(leaf, None)
        if isinstance(tied, dict):
            tied.pop(path, None)


def _register() -> None:
    """By the functions that later versions have, else in their tables."""
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    if hasattr(auto, "register_quantizer"):
        auto.register_quantization_config(METHOD)(RhocConfig)
        auto.register_quantizer(METHOD)(RhocQuantizer)
        return
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = RhocConfig
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = RhocQuantizer


_register()
