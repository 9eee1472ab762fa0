"""A packed model of transformers' that `save_pretrained` saves packed."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Any

from torch import nn

from ...runtime.checkpoint import centred_norms, described
from ...runtime.errors import RequestError
from ...runtime.packed import packed_weights
from ..exchange.untold import refuse_centred, refuse_untold
from ..spec import Spec


def as_pretrained(packed: nn.Module, spec: Spec) -> Any:
    """The same model, `compiled.packed()` of a transformers model and its `compiled.spec`, ready for
    `save_pretrained`; its config says how it is packed.

    Raises RequestError when it is no model of transformers, that is not installed, or the model does what its
    config has no place for.
    """
    try:
        transformers = import_module("transformers")
        quantizer = import_module(f"{__package__}.quantizer")
    except ModuleNotFoundError as error:
        raise RequestError("this needs transformers", advice="pip install 'rhoc[hf]'") from error
    if not isinstance(packed, transformers.PreTrainedModel):
        raise RequestError(
            f"{type(packed).__name__} is no model of transformers", advice="save it with `compiled.save(DIR)`"
        )
    refuse_untold(spec)
    refuse_centred(centred_norms(packed))
    weights = {path: asdict(weight) for path, weight in described(packed).items()}
    first = {id(weight): path for path, weight in packed_weights(packed).items()}
    everywhere = packed.named_modules(remove_duplicate=False)
    aliases = {path: first[id(m)] for path, m in everywhere if id(m) in first and first[id(m)] != path}
    digest = quantizer.digest_of(packed_weights(packed))
    config = quantizer.RhocConfig(spec.to_document(), spec.digest, weights, aliases, digest)
    held: Any = packed
    held.config.quantization_config = config
    held.hf_quantizer = quantizer.RhocQuantizer(config, pre_quantized=True)
    held.is_quantized, held.quantization_method = True, quantizer.METHOD
    return held
