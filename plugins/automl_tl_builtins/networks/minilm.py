"""MiniLM with 6 layers of width 384: a BERT encoder in plain PyTorch, without the library `transformers`.

Wang et al., "MiniLM: Deep Self-Attention Distillation", 2020; Devlin et al., "BERT", 2019. `Tokens` in, `Tokens` out,
so that the mask travels with the hidden states and any prefix of the groups can be run by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from automl_tl.plugin import Tokens

LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
VOCABULARY, LONGEST = 30522, 512
EPSILON, DROPOUT = 1e-12, 0.1


def minilm_l6(weights: Path | None) -> nn.Sequential:
    """Return the network: token ids (N, L), L at most 512, to hidden states (N, L, 384)."""
    groups: OrderedDict[str, nn.Module] = OrderedDict(embeddings=Embeddings())
    groups.update((f"layer{number}", EncoderLayer()) for number in range(1, LAYERS + 1))
    network = nn.Sequential(groups)
    if weights is None:
        _initialize(network)
    else:
        network.load_state_dict(_from_bert(load_file(weights)), strict=True)
    return network


class Embeddings(nn.Module):
    """The sum of a word's and a position's vector, normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tokens) -> Tokens:
        """Map ids (N, L) to vectors (N, L, 384)."""
        length = tokens.values.shape[1]
        vectors = self.words(tokens.values) + self.positions.weight[:length]
        return Tokens(self.dropout(self.norm(vectors)), tokens.mask)


class EncoderLayer(nn.Module):
    """One BERT layer: self-attention and a feed-forward network, each followed by addition and LayerNorm.

    Not `nn.TransformerEncoderLayer`: without gradients that one switches to a fused kernel, whose operations cannot be
    counted and which turns rows of nothing but padding into NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)  # queries, keys and values, one after the other
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.widen = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tokens) -> Tokens:
        """Map hidden states (N, L, 384) to the next ones; no token attends to padding."""
        x, mask = tokens
        x = self.norm1(x + self.dropout(self._attend(x, mask)))
        x = self.norm2(x + self.dropout(self.narrow(functional.gelu(self.widen(x)))))
        return Tokens(x, mask)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        samples, length, _ = x.shape
        heads = self.qkv(x).view(samples, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, L, 32)
        # Without the dropout of BERT's attention: it rules out the fused kernel, so that steps take longer.
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        attended: Tensor = self.attended(mixed.transpose(1, 2).reshape(samples, length, WIDTH))
        return attended


def _initialize(network: nn.Module) -> None:
    """Draw weights as BERT does: matrices from N(0, 0.02), biases 0, LayerNorm 1."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _from_bert(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a BERT checkpoint's tensors; the segment vector, the same for all our tokens, joins the positions."""
    segment = stored["embeddings.token_type_embeddings.weight"][0]
    state = {
        "embeddings.words.weight": stored["embeddings.word_embeddings.weight"],
        "embeddings.positions.weight": stored["embeddings.position_embeddings.weight"] + segment,
        "embeddings.norm.weight": stored["embeddings.LayerNorm.weight"],
        "embeddings.norm.bias": stored["embeddings.LayerNorm.bias"],
    }
    renamed = {
        "attended": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for layer in range(LAYERS):
        ours, theirs = f"layer{layer + 1}", f"encoder.layer.{layer}"
        for kind in ("weight", "bias"):
            qkv = [stored[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}.qkv.{kind}"] = torch.cat(qkv)
            for new, old in renamed.items():
                state[f"{ours}.{new}.{kind}"] = stored[f"{theirs}.{old}.{kind}"]
    return state
