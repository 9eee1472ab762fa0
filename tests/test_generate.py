"""Generation with a cache against the whole forward at every token, and the command around it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rhoc
from rhoc.compiler.generation import Bytes, cache_from, caches_of, packed_over
from rhoc.runtime.errors import RequestError
from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.generation.decoder import Decoder
from rhoc.runtime.generation.generate import generate
from rhoc.runtime.generation.sampling import Sampling
from rhoc.runtime.kernels import select
from rhoc.runtime.llama import Attention, Llama, llama
from rhoc.runtime.plain import to_plain
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Hadamard, Quantize, Sparsify

from .command_line import CommandLine
from .strategies import FLAT, chains, repeatable

PROMPTS = [b"hello there", b"x", b"some text of another length"]
NEW = 12
# No grid here has the largest number of a token between two levels: a last bit would decide where it goes.
CHAINS = {
    "int8": Representation((Quantize(8, strategy="token", grid="midtread", dynamic=True),)),
    "int4-g16": Representation(
        (Quantize(4, strategy="group", group_size=16, symmetric=False, dynamic=True),)
    ),
    "zero points": Representation((Quantize(3, strategy="token", symmetric=False, dynamic=True),)),
    "rotated": Representation((Hadamard(32), Quantize(4, strategy="token", grid="midtread", dynamic=True))),
    "fp8": Representation((Quantize(8, type="float", strategy="token", dynamic=True),)),
    "2:4": Representation((Sparsify(sparsity_structure="2:4"),)),
    "codebook": Representation((Codebook(2, nbits_per_codebook=4, source="gaussian", strategy="channel"),)),
}


def decoder(dtype: torch.dtype = torch.float64) -> Llama:
    """A model with something to say: of a fresh one all tokens are nearly alike."""
    torch.manual_seed(0)
    model = llama(64, context=64).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def paths(model: Llama) -> list[str]:
    return [f"layers.{layer}.self_attn" for layer in range(len(model.layers))]


@torch.no_grad()
def recomputed(model: nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The most likely tokens, each from the whole sequence before it, one sequence at a time."""
    found = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(NEW):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        found.append(tuple(tokens[len(prompt) :]))
    return tuple(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_dense_cache_changes_no_token(dtype: torch.dtype) -> None:
    model = decoder(dtype)
    expected = recomputed(model, PROMPTS)
    assert len({token for tokens in expected for token in tokens}) > 8
    together = generate(Decoder(model), PROMPTS, NEW)
    assert together.tokens == expected
    assert together.cache_bytes == 2 * 2 * 3 * 64 * (27 + NEW - 1) * dtype.itemsize
    assert generate(Decoder(model), PROMPTS[1:2], NEW).tokens == expected[1:2]


@pytest.mark.parametrize("name", CHAINS)
def test_a_packed_cache_is_the_projection_of_keys_and_values(name: str) -> None:
    """What a spec's `kv_cache` simulates in the whole forward is what the cache stores."""
    model, chain = decoder(), CHAINS[name]
    spec = {"version": 1, "rules": [{"targets": "Attention", "kv_cache": to_plain(chain)}]}
    simulated = rhoc.compile(model, spec).reference()
    expected = recomputed(simulated, PROMPTS)
    caches = caches_of(model, rhoc.load_spec(spec), lambda module: isinstance(module, Attention))
    assert caches == dict.fromkeys(paths(model), chain)
    found = generate(Decoder(model, caches), PROMPTS, NEW)
    assert found.tokens == expected
    slots = 3 * 2 * (27 + NEW - 1)
    bits = 8 * chain.nbytes((slots, 1, 32), torch.float64)
    assert found.cache_bytes == 2 * 2 * bits // 8
    assert found.cache_bytes < generate(Decoder(model), PROMPTS, NEW).cache_bytes


def test_packed_weights_generate_what_their_form_gives() -> None:
    model = decoder()
    spec = rhoc.load_spec("int4")
    packed = packed_over(model, spec)
    assert type(packed) is Llama
    assert generate(Decoder(packed), PROMPTS, NEW).tokens == recomputed(
        rhoc.compile(model, spec).reference(), PROMPTS
    )


def attended(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Attention by its definition, one query at a time."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = int(positions[b, i]) + 1
                keys, values = k[b, h // group, :seen], v[b, h // group, :seen]
                share = torch.softmax(keys @ q[b, h, i] / math.sqrt(q.shape[-1]), 0)
                out[b, h, i] = share @ values
    return out


@settings(repeatable, max_examples=40)
@given(st.data())
def test_tokens_are_stored_each_by_itself(data: st.DataObject) -> None:
    """Any chain that a cache takes gives tokens as they would be encoded together, in whatever pieces they come;
    longer than one block, with more heads of queries than of the cache."""
    chain = data.draw(chains((1, 2, 1, 32), kinds=(*FLAT, Codebook)))
    count = data.draw(st.sampled_from([5, 300]))
    shape = (2, 2, count, 32)
    try:
        cache = TokenCache(chain, shape, torch.float64, torch.device("cpu"))
    except RequestError as error:
        assert "does not store each token by itself" in str(error)  # noqa: PT017
        assume(False)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    cut = data.draw(st.integers(1, count - 1))
    places = Places(torch.arange(count).expand(2, -1), count)
    for first, last in ((0, cut), (cut, count)):
        part = Places(places.positions[:, first:last], last)
        cache.append(k[:, :, first:last], v[:, :, first:last], part)
    keys, values = (chain.project(x.unsqueeze(-2)).squeeze(-2) for x in (k, v))
    for found, expected in zip(cache.dense(places), (keys, values), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    q = torch.randn(2, 4, 2, 32, generator=generator, dtype=torch.float64)
    asked = Places(torch.tensor([[count - 2, count - 1], [0, count // 2]]), count)
    torch.testing.assert_close(cache.attend(q, asked), attended(q, keys, values, asked.positions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_over_a_packed_cache_is_as_good_as_over_a_dense_one(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    cache = TokenCache(CHAINS["int8"], (1, 2, 600, 64), dtype, torch.device("cpu"))
    k, v, q = (torch.randn(1, 2, n, 64, dtype=dtype) for n in (600, 600, 3))
    places = Places(torch.arange(600)[None], 600)
    cache.append(k, v, places)
    keys, values = cache.dense(places)
    asked = Places(torch.tensor([[599, 300, 17]]), 600)
    exact = attended(q.double(), keys.double(), values.double(), asked.positions)
    seen = torch.arange(600) <= asked.positions[:, None, :, None]
    plain = nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
    error = (cache.attend(q, asked).double() - exact).norm()
    assert error <= 2 * (plain.double() - exact).norm()
    assert select(cache.call).kernel.name == "cpu_cache_attention"


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (Quantize(4, strategy="tensor"), "its 0.scale is of several; quantize with strategy token or group"),
        (Sparsify(0.5), "its carry is of several"),
        (Sparsify(sparsity_structure="2:3"), "32"),
    ],
)
def test_what_a_cache_cannot_store(chain: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=r"layers\.0\.self_attn: kv_cache: ") as error:
        Decoder(decoder(), {"layers.0.self_attn": Representation((chain,))}).start(1, 4)
    assert reason in str(error.value)


def test_drawn_tokens_depend_on_the_seed_alone() -> None:
    model = Decoder(decoder())
    drawn = [generate(model, PROMPTS, NEW, Sampling(0.7, seed=seed)).tokens for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert generate(model, PROMPTS[:1], NEW, Sampling(0.7, seed=1)).tokens == drawn[0][:1]
    assert (
        generate(model, PROMPTS, NEW, Sampling(0.7, top_k=1)).tokens == generate(model, PROMPTS, NEW).tokens
    )


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    generators = Sampling(0.5, 3, 5).generators(4000)
    drawn = Sampling(0.5, 3, 5).choose(logits, generators)
    expected = torch.softmax(torch.tensor([4.0, 2.0, 0.0]), 0)
    counts = torch.bincount(drawn, minlength=4) / 4000
    assert counts[3] == 0
    assert float((counts[:3] - expected).abs().max()) < 4 * math.sqrt(0.25 / 4000)


REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "too long": (
        {"count": 60},
        "27 tokens of a prompt and 60 more are beyond the context of 64; ask for at most 38 tokens, or",
    ),
    "nothing": ({"count": 0}, "0 tokens are none to generate; ask for at least one"),
    "no prompt": ({"prompts": [b"a", b""]}, "a prompt is empty; give at least one token of text"),
    "no such token": ({"prompts": [[256]]}, "token 256 is not among the model's 256; text is read byte by"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_cannot_be_met(name: str) -> None:
    changes, message = REQUESTS[name]
    with pytest.raises(RequestError) as error:
        generate(Decoder(decoder()), **{"prompts": PROMPTS, "count": 3, **changes})
    assert message in str(error.value)


def test_other_models_and_wrong_samplings() -> None:
    with pytest.raises(RequestError, match=r"Linear cannot generate here; models of rhoc\.runtime\.llama do"):
        Decoder(nn.Linear(2, 2))
    with pytest.raises(RequestError, match=r"sampling: the temperature is 0 or more, not -1"):
        Sampling(-1)
    with pytest.raises(RequestError, match="sampling: top-k is 1 or more, not 0"):
        Sampling(1, 0)


def test_bytes_are_text_and_back() -> None:
    text = "naïve → text"
    assert Bytes().text(Bytes().tokens(text)) == text
    assert Bytes().text([104, 255, 105]) == "h\\xffi"


def test_the_cache_of_a_spec_is_that_of_the_innermost_module_it_speaks_of() -> None:
    def attends(module: nn.Module) -> bool:
        return isinstance(module, Attention)

    model = decoder()
    rules = [
        {"targets": "re:layers.1.self_attn$", "kv_cache": "quantize(int8, token, dynamic)"},
        {"targets": "Block", "kv_cache": "quantize(int4, token, dynamic)"},
    ]
    spec = rhoc.load_spec({"version": 1, "rules": rules})
    int4, int8 = (cache_from(f"quantize(int{bits}, token, dynamic)") for bits in (4, 8))
    assert caches_of(model, spec, attends) == dict(zip(paths(model), (int4, int8), strict=True))
    assert caches_of(model, spec, attends, CHAINS["fp8"]) == dict.fromkeys(paths(model), CHAINS["fp8"])
    assert caches_of(model, rhoc.load_spec("int4"), attends) == {}


MODEL = "rhoc.runtime.llama:llama(width=32)"
CALL = ("generate", "int4", "--model", MODEL, "--prompt", "ab", "--prompt", "abc", "--tokens", 5)


def test_the_command(command: CommandLine) -> None:
    said = command(*CALL, "--batch", "--cache", "quantize(int8, token, dynamic)", "--json")
    assert (said.code, said.err) == (0, "")
    document = said.document
    assert [entry["prompt"] for entry in document["texts"]] == ["ab", "abc"]
    assert all(len(entry["tokens"]) == 5 for entry in document["texts"])
    dense, packed = document["forms"]
    assert (dense["form"], packed["form"], document["tokens"]) == ("dense", "packed", 10)
    assert dense["cache_bytes"] == 2 * 2 * 2 * 32 * (3 + 5 - 1) * 4
    assert packed["cache_bytes"] == 2 * 2 * 2 * 2 * (3 + 5 - 1) * (16 + 4)
    for form in document["forms"]:
        assert form["tokens_per_second"] > 0
        assert form["weight_bytes"] < form["peak_bytes"]
    assert packed["weight_bytes"] < dense["weight_bytes"]


def test_the_command_in_words(command: CommandLine) -> None:
    said = command(*CALL, "--temperature", "0.5", "--top-k", "5")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("ab")
    assert "weights (MB)" in said.out
    assert any(line.startswith("packed / dense") for line in lines)
    assert "of 10 tokens are those of the dense model." in said.out


def test_a_checkpoint_generates_what_it_holds(command: CommandLine, tmp_path: Path) -> None:
    assert command("compile", "int4", "--model", MODEL, "--out", "packed").code == 0
    said = command(*CALL, "--checkpoint", "packed", "--json").document
    again = command(*CALL, "--checkpoint", "packed", "--json").document
    assert said["texts"] == again["texts"]
    assert said["same_tokens"] == 10  # the dense form has the weights that the checkpoint decodes to
    wrong = command("generate", "int8", *CALL[2:], "--checkpoint", "packed")
    assert wrong.code == 2
    assert "packed: it was made with int4, which is not what int8 is now; give the spec that" in wrong.err


def test_requests_of_the_command_that_are_wrong(command: CommandLine) -> None:
    said = command(*CALL, "--cache", "quantize(int8, tensor, dynamic)")
    assert said.code == 2
    assert "layers.0.self_attn: kv_cache: quantize(int8, twos, tensor, absmax, dynamic) does not" in said.err
    said = command(*CALL, "--cache", "nonsense")
    assert said.code == 2
    assert said.err.count("\n") == 1
    said = command(*CALL, "--checkpoint", "nowhere")
    assert said.code == 2
    assert "nowhere: no packed model here" in said.err
    said = command(*CALL[:-1], 500)
    assert said.code == 2
    assert "beyond the context of 128" in said.err


def test_models_of_transformers_generate_by_themselves(command: CommandLine) -> None:
    """Keys and values in the cache are what projecting them in the whole forward gives."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, eos_token_id=None
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained("tiny")
    chain = to_plain(Representation((Quantize(8, strategy="token", grid="midtread", dynamic=True),)))
    rules = [
        {"targets": "LlamaAttention", "kv_cache": chain},
        {"targets": "Linear", "weights": "quantize(int4, channel)"},
    ]
    spec = {"version": 1, "rules": rules}
    Path("spec.yaml").write_text(json.dumps(spec))
    call = (
        "generate",
        "spec.yaml",
        "--model",
        "hf:tiny",
        "--prompt",
        "abc",
        "--prompt",
        "hello",
        "--tokens",
        6,
    )
    document = command(*call, "--batch", "--json").document
    assert document["note"].startswith("hf:tiny has no tokenizer: text is read and written byte by byte")
    reference = rhoc.compile(model, spec, {"input_ids": torch.arange(8)[None]}).reference()
    for entry in document["texts"]:
        tokens = list(entry["prompt"].encode())
        for _ in range(6):
            with torch.no_grad():
                tokens.append(int(reference(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert entry["tokens"] == tokens[-6:]
    assert document["forms"][1]["cache_bytes"] < document["forms"][0]["cache_bytes"] / 3


def test_what_transformers_cannot_generate_with_is_said(command: CommandLine) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 256}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens)).save_pretrained("gpt2")
    sizes = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "vocab_size": 256}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).save_pretrained("t5")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 256}
    transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).save_pretrained("mamba")

    def said(model: str, prompt: str) -> str:
        spec = "quantize(int8, channel)" if model != "gpt2" else "gpt2.yaml"
        found = command("generate", spec, "--model", f"hf:{model}", "--prompt", prompt, "--tokens", 3)
        assert found.code == 2
        return found.err

    Path("gpt2.yaml").write_text(
        "{version: 1, rules: [{targets: Conv1D, weights: 'quantize(int8, channel)'}]}"
    )
    assert "15 tokens of a prompt and 3 more are beyond the context of 16" in said("gpt2", "a" * 15)
    assert "a prompt is empty" in said("gpt2", "")
    assert "hf:t5: T5ForConditionalGeneration cannot generate here" in said("t5", "a")
    assert "hf:mamba: MambaForCausalLM cannot generate here" in said("mamba", "a")


def test_weights_that_only_running_code_shows_are_packed(command: CommandLine) -> None:
    """A model's own example inputs are taken, as by other commands."""
    Path("shown.py").write_text(
        "import torch\n"
        "from rhoc.runtime.llama import Llama, LlamaShape\n"
        "class Scaled(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.randn(48, 32))\n"
        "    def forward(self, x):\n"
        "        return torch.mm(x.flatten(0, -2), self.weight).view(len(x), *x.shape[1:-1], -1)\n"
        "def model():\n"
        "    found = Llama(LlamaShape(width=32, layers=1, heads=2, hidden=48, vocabulary=256, context=16))\n"
        "    found.layers[0].mlp.down_proj = Scaled()\n"
        "    return found\n"
    )
    Path("spec.yaml").write_text(
        "{version: 1, rules: [{targets: Scaled, weights: 'quantize(int8, channel)'}]}"
    )
    said = command(
        "generate", "spec.yaml", "--model", "shown.py:model", "--prompt", "ab", "--tokens", 2, "--json"
    )
    assert (said.code, said.err) == (0, "")
    dense, packed = said.document["forms"]
    assert packed["weight_bytes"] == dense["weight_bytes"] - 32 * 48 * 4 + 32 * 48 + 32 * 4
