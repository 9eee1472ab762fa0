"""What `explain` says of every parameter, and what a rule that is good for nothing is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.runtime.errors import RequestError
from rhoc.runtime.kernels import KERNELS
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

from .models import CASES, transformer_encoder

CHAIN = [{"kind": "quantize", "num_bits": 4, "strategy": "channel", "observer": "rms", "grid": "midrise"}]


def spec(*rules: dict[str, Any]) -> dict[str, Any]:
    """A spec of rules, each with the same chain unless it says otherwise."""
    return {"version": 1, "name": "test", "rules": [{"weights": CHAIN} | rule for rule in rules]}


class Mixed(nn.Module):
    """Parameters of every fate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.conv = nn.Conv1d(16, 8, 1)
        self.lm_head = nn.Linear(8, 24, bias=False)
        self.table = nn.Parameter(torch.arange(8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(8, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.up(self.norm(self.embed(tokens)) @ self.scale)
        return self.lm_head(self.conv(F.gelu(h).transpose(1, 2)).transpose(1, 2) + self.table)


def said(row: dict[str, Any]) -> str:
    """The reason of a row without the refusals of kernels, which depend on the machine."""
    return "; ".join(part for part in row["reason"].split("; ") if " refused: " not in part)


def explained(model: nn.Module, *rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    document = rhoc.compile(model, spec(*rules)).explain().to_document()
    assert isinstance(document["parameters"], list)
    return {row["path"]: row for row in document["parameters"]}


def test_every_parameter_is_listed_with_what_it_became_or_why_not() -> None:
    model = Mixed()
    rows = explained(
        model,
        {"targets": ["re:.*"], "ignore": ["lm_head", "embed"]},
        {"targets": ["Embedding"], "weights": "dense"},
    )
    assert list(rows) == [name for name, _ in model.named_parameters()]
    vector = "a vector (bias, norm or scale); only matrices are represented"
    assert {path: said(row) for path, row in rows.items()} == {
        "table": "holds int64, not floating-point numbers",
        "scale": "",
        "embed.weight": "rule 1 says dense",
        "norm.weight": vector,
        "norm.bias": vector,
        "up.weight": "",
        "up.bias": vector,
        "conv.weight": "",
        "conv.bias": vector,
        "lm_head.weight": "rule 0 ignores lm_head",
    }
    row = rows["up.weight"]
    assert {key: value for key, value in row.items() if key not in ("kernel", "reason")} == {
        "path": "up.weight",
        "op": "linear",
        "shape": [16, 8],
        "representation": "quantize(int4, midrise, channel, rms)",
        "input_representation": "dense",
        "bits_per_weight": 4 + 32 / 8,
        "gmse": pytest.approx(0.0115429, rel=1e-4),
    }
    takers = [kernel for kernel in KERNELS if kernel.operation == "linear" and kernel.is_for("cpu")]
    first = next(i for i, kernel in enumerate(takers) if kernel.name == row["kernel"])
    assert row["reason"].count(" refused: ") == first
    assert all(f"{kernel.name} refused: " in row["reason"] for kernel in takers[:first])
    dense = rows["lm_head.weight"]
    assert (dense["op"], dense["representation"], dense["kernel"]) == ("linear", "dense", "torch")
    assert (dense["bits_per_weight"], dense["gmse"]) == (32, 0.0)
    assert {path: row["op"] for path, row in rows.items() if "." not in path} == {
        "table": "Mixed",
        "scale": "matmul",
    }
    assert (rows["conv.weight"]["op"], rows["conv.weight"]["kernel"]) == ("conv", "decode")


def test_totals_count_every_parameter_once() -> None:
    case = CASES["tied"]
    model = case.model(torch.float32)
    table = rhoc.compile(model, spec({"targets": ["Linear", "Embedding"]})).explain()
    chain = Representation((Quantize(4, strategy="channel", observer="rms", grid="midrise"),))
    hidden, tied, bias = 16 * (8 + 4), 24 * (8 + 4), 16 * 4  # packed bytes a row, then its scale
    assert table.total_bytes == hidden + tied + bias
    assert (
        table.total_bytes
        == chain.nbytes((16, 16), torch.float32) + chain.nbytes((24, 16), torch.float32) + bias
    )
    assert table.dense_bytes == 4 * (24 * 16 + 16 * 16 + 16)
    assert table.parameters[0].reason.startswith("tied to head.weight")


def test_the_document_is_json_with_the_keys_of_the_contract() -> None:
    table = rhoc.compile(CASES["llama"].model(), "int4-a4").explain()
    document = json.loads(json.dumps(table.to_document()))
    assert document.keys() >= {"parameters", "total_bytes", "dense_bytes", "effective_parameters"}
    keys = {"path", "op", "shape", "representation", "bits_per_weight", "gmse", "kernel", "reason"}
    assert all(row.keys() >= keys for row in document["parameters"])
    assert document["effective_parameters"] is None
    assert document["effective_parameters_reason"] == "no law was applied"
    assert document["captured"] == ["the model (symbolic trace)"]
    assert {row["kernel"] for row in document["parameters"]} <= {
        "torch",
        *(kernel.name for kernel in KERNELS),
    }
    q_proj = next(row for row in document["parameters"] if row["path"].endswith("q_proj.weight"))
    assert q_proj["input_representation"] == "hadamard(128) >> quantize(int4, midrise, token, rms)"


def test_the_text_table() -> None:
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False))
    head, first, second, total = str(rhoc.compile(model, spec({"targets": ["0"]})).explain()).splitlines()
    chain = "quantize(int4, midrise, channel, rms)"
    assert head.startswith(f"path      op      shape  {'representation':<37}  bits    gmse     kernel")
    assert first.startswith(f"0.weight  linear  16x8   {chain}  8.000   0.01154  ")
    assert second.startswith(f"1.weight  linear  8x16   {'dense':<37}  32.000           torch")
    assert second.endswith("  no rule targets it")
    assert head.index("reason") == second.index("no rule")
    assert total == "640 of 1,024 bytes (62.5%)"


def test_what_was_not_captured_is_listed() -> None:
    table = rhoc.compile(transformer_encoder(), spec({"targets": ["Linear"]})).explain()
    refused = {refusal.path: refusal.reason for refusal in table.refusals}
    assert refused["layers.0"].startswith("its forward has the optional argument 'src_mask'")
    assert "layers.0.linear1 (one operation)" in table.captured
    assert "layers.0.norm1 (symbolic trace)" in table.captured
    rows = {row.path: row for row in table.parameters}
    for inside in ("self_attn.out_proj", "linear1"):
        row = rows[f"layers.0.{inside}.weight"]
        assert (row.op, row.representation != "dense") == ("linear", True)
    assert rows["layers.0.self_attn.in_proj_weight"].reason == "no rule targets it"


def test_input_activations_on_a_lookup_are_said_not_to_apply() -> None:
    chain = [{"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True}]
    rows = explained(CASES["llama"].model(), {"targets": ["embed_tokens"], "input_activations": chain})
    assert said(rows["embed_tokens.weight"]) == "input_activations do not apply to a lookup"
    assert rows["embed_tokens.weight"]["kernel"] in {k.name for k in KERNELS if k.operation == "embedding"}


def test_the_first_matching_rule_wins() -> None:
    eight = [CHAIN[0] | {"num_bits": 8}]
    rows = explained(
        CASES["llama"].model(),
        {"targets": ["re:.*mlp.*"], "weights": eight},
        {"targets": ["Linear"], "ignore": ["lm_head"]},
        {"targets": ["re:.*down_proj"], "weights": eight},  # shadowed by the first, and no fault
    )
    bits = {path: row["representation"][9:13] for path, row in rows.items() if row["kernel"] != "torch"}
    assert set(bits.values()) == {"int8", "int4"}
    assert all((kind == "int8") == ("mlp" in path) for path, kind in bits.items())


def refused(model: nn.Module, *rules: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as error:
        rhoc.compile(model, spec(*rules))
    assert error.value.exit_code == 2
    return str(error.value)


def test_a_target_that_matches_nothing_is_an_error() -> None:
    assert refused(CASES["mlp"].model(), {"targets": ["Lineer"]}) == (
        "rules[0]: target 'Lineer' matches no module of this model; "
        "did you mean 'Linear'? (its weights are held by Linear, such as 0)"
    )
    message = refused(
        CASES["llama"].model(), {"targets": ["Linear"]}, {"targets": ["layers.0.mlp.gate_prj", "re:.*attn2"]}
    )
    first, second = message.splitlines()
    assert "rules[1]: target 'layers.0.mlp.gate_prj' matches no module" in first
    assert "did you mean 'layers.0.mlp.gate_proj'?" in first
    assert (
        "rules[1]: target 're:.*attn2' matches no module of this model; its weights are held by Embedding, "
        in second
    )


def test_a_target_that_matches_only_what_is_ignored_is_an_error() -> None:
    rule = {"targets": ["re:.*lm_head"], "ignore": ["lm_head"]}
    assert "matches only what the rule ignores (lm_head); change targets or ignore" in refused(Mixed(), rule)


def test_a_target_without_weights_of_its_own_is_an_error() -> None:
    message = refused(CASES["llama"].model(), {"targets": ["layers.0.mlp"]})
    assert "matches layers.0.mlp, which hold no weights themselves; name the class" in message
    assert "or a pattern (re:layers.0.mlp.*)" in message


def test_a_target_whose_weights_cannot_be_represented_is_an_error() -> None:
    message = refused(Mixed(), {"targets": ["Linear"]}, {"targets": ["LayerNorm"]})
    assert message == (
        "rules[1]: target 'LayerNorm' matches norm, none of whose weights can be represented "
        "(norm.weight: a vector (bias, norm or scale); only matrices are represented; "
        "norm.bias: a vector (bias, norm or scale); only matrices are represented)"
    )
    lookup = nn.Sequential(nn.Embedding(8, 16, max_norm=1.0), nn.Linear(16, 16))
    message = refused(lookup, {"targets": ["Embedding"]})
    assert "(0.weight: used by a lookup that writes to it (max_norm), not as the weight of" in message


def test_a_spec_that_is_dense_throughout_needs_no_match() -> None:
    rows = explained(nn.LayerNorm(4), {"targets": ["Linear"], "weights": "dense"})
    assert {row["representation"] for row in rows.values()} == {"dense"}


def test_all_shapes_that_cannot_be_represented_are_in_one_message() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3))
    pruned = [{"kind": "sparsify", "sparsity_structure": "2:4"}]
    first, second = refused(model, {"targets": ["Linear"], "weights": pruned}).splitlines()
    assert first.startswith(
        "0.weight: 2:4 sparsity does not divide the last dimension of 6; choose a structure"
    )
    assert second.startswith("2.weight: 2:4 sparsity does not divide the last dimension of 10")
    odd = nn.Linear(7, 4)
    assert "cannot rotate a last dimension of 7" in refused(odd, {"targets": ["Linear"], "weights": "int4"})
    rotated = [{"kind": "hadamard", "block": 4}, {"kind": "quantize", "strategy": "token", "dynamic": True}]
    rule = {"targets": ["Linear"], "weights": "dense", "input_activations": rotated}
    assert "cannot rotate a last dimension of 7" in refused(odd, rule)


def test_the_graph_after_any_pass_can_be_read() -> None:
    compiled = rhoc.compile(CASES["mlp"].model(), spec({"targets": ["Linear"]}))
    chain = "quantize(int4, midrise, channel, rms)"
    assert compiled.listing("Project").splitlines()[:3] == [
        "%input = input",
        f"%1 = project(0.weight)           {chain}",
        "%2 = linear(%input, %1, 0.bias)",
    ]
    assert f"packed_linear(%input, 0.weight, 0.bias)  {chain}" in compiled.listing("pack")
    assert "linear(%input, 0.weight, 0.bias)" in rhoc.compile(CASES["mlp"].model(), "dense").listing("decode")
    parts = rhoc.compile(CASES["branching"].model(), spec({"targets": ["Linear"]})).listing("assign")
    assert parts.startswith("# small\n%input = input\n")
    assert "\n\n# large\n" in parts
    assert compiled.trace == ()
    with pytest.raises(
        RequestError, match=r"no pass is called 'packs'; did you mean 'pack'\? \(known: canon"
    ):
        compiled.listing("packs")


def test_the_trace_and_the_capture_are_records() -> None:
    compiled = rhoc.compile(CASES["branching"].model(), spec({"targets": ["Linear"]}))
    compiled.trainable()
    assert [(step.part, step.name) for step in compiled.trace] == [
        (part, name) for part in ("small", "large") for name in ("Canonicalize", "Assign", "Project")
    ]
    (refused,) = compiled.capture["refused"]
    assert refused["path"] == ""
    assert [entry["path"] for entry in compiled.capture["captured"]] == ["small", "large", "norm"]


def test_a_tied_weight_goes_by_the_first_rule_and_by_any_ignore() -> None:
    model, eight = CASES["tied"].model(), [CHAIN[0] | {"num_bits": 8}]
    rules: list[dict[str, Any]] = [{"targets": ["Linear"], "weights": eight}, {"targets": ["Embedding"]}]
    assert "int8" in explained(model, *rules)["embed.weight"]["representation"]
    rows = explained(model, {"targets": ["Linear", "Embedding"], "ignore": ["head"]})
    assert rows["embed.weight"]["representation"] == "dense"
    assert rows["embed.weight"]["reason"] == "rule 0 ignores head"
