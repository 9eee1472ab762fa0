"""A small language model that the benches of passes share: trained once, kept in a temporary folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.runtime.corpus import Corpus, load_corpus
from rhoc.runtime.llama import Llama, llama
from rhoc.runtime.train import TrainSettings, train

WIDTH, TOKENS, ROWS = 64, 2_000_000, 16
OUTLIERS, FACTOR = 4, 30.0


@dataclass(frozen=True)
class Trained:
    """The model, its corpus, what it is calibrated on and what it is measured on: int64 windows of tokens."""

    model: Llama
    corpus: Corpus
    calibration: tuple[Tensor, ...]
    evaluation: Tensor

    @property
    def example(self) -> tuple[Tensor]:
        """Inputs in the shape of a calibration batch."""
        return (self.calibration[0],)

    def loss(self, model: nn.Module) -> float:
        """Mean cross entropy in nats on the held-out tokens."""
        return self._mean(
            model, lambda logits, wanted, dense: F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        )

    def error(self, model: nn.Module) -> float:
        """The squared error of the logits over the square of the dense model's."""
        return self._mean(
            model, lambda logits, wanted, dense: (logits - dense).square().mean() / dense.square().mean()
        )

    def _mean(self, model: nn.Module, of: object) -> float:
        assert callable(of)
        found = []
        with torch.no_grad():
            for windows in self.evaluation.split(ROWS):
                tokens, wanted = windows[:, :-1], windows[:, 1:]
                found.append(float(of(model(tokens), wanted, self.model(tokens))) * len(windows))
        return sum(found) / len(self.evaluation)


def trained(tokens: int = TOKENS, batches: int = 8, measured: int = 65_536) -> Trained:
    """The model from a fixed seed, trained on Python's standard library unless that was done before."""
    torch.manual_seed(0)
    model, corpus = llama(WIDTH), load_corpus()
    kept = Path(tempfile.gettempdir()) / f"rhoc-bench-{WIDTH}-{tokens}-{corpus.digest[:12]}.safetensors"
    if kept.is_file():
        model.load_state_dict(load_file(kept))
    else:
        train(model, corpus, TrainSettings(tokens=tokens, eval_tokens=8192))
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, kept)
    calibration = tuple(
        corpus.batch(step, batch_size=ROWS, context=128, seed=1)[:, :-1].contiguous()
        for step in range(batches)
    )
    return Trained(model.eval(), corpus, calibration, corpus.evaluation(tokens=measured, context=128))


@torch.no_grad()
def plant_outliers(model: Llama) -> None:
    """Some channels of every norm in a block times `FACTOR`, what reads them divided by it: the same values."""
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp  # type: ignore[union-attr]
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),  # type: ignore[union-attr]
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),  # type: ignore[union-attr]
        ):
            norm.weight[:OUTLIERS] *= FACTOR  # type: ignore[operator, index]
            for reader in readers:
                reader.weight[:, :OUTLIERS] /= FACTOR  # type: ignore[union-attr, operator, index]
