"""One pass of a backbone, shared by the slots: what is stored, what is said, and children that die on the way."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.errors import TrialError
from automl_tl.features import passes as one_pass
from automl_tl.features.eviction import facts_of
from automl_tl.features.frozen import pooled_rows, rows_at
from automl_tl.features.shards import shard_directories
from automl_tl.features.store import FeatureStore
from automl_tl.model.pooling import pool
from automl_tl.search import passes as module
from automl_tl.search.inputs import network_of, stored_network
from automl_tl.search.passes import pass_backbone

TWO = parse_slots("cpu*2", cores=2)

DEADLY = """
    import os, signal
    from pathlib import Path
    from automl_tl.plugin import Backbone, ImageInput, Weights, hookimpl

    def find():
        return Path(__file__)

    def build(*, input_shape, weights):
        from torch import nn

        class Deadly(nn.Conv2d):
            def forward(self, inputs):
                deaths = sorted(Path(__file__).parent.glob("death-*"))
                if len(inputs) > 8 and len(deaths) < {deaths}:
                    (Path(__file__).parent / f"death-{{len(deaths)}}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().forward(inputs)

        module = nn.Module()
        module.first, module.second = Deadly(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3)
        return module

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(
            name="deadly",
            description="kills its process",
            input=ImageInput(size=16, smallest=8),
            layer_groups=("first", "second"),
            build=build,
            weights=Weights(find=find, install="", origin="", license="", sha256=""),
        )
"""

FACTOR = """
    from pathlib import Path
    from automl_tl.plugin import Backbone, ImageInput, Weights, hookimpl

    def build(*, input_shape, weights):
        import torch
        from torch import nn

        class Times(nn.Module):
            def forward(self, inputs):
                return (inputs + 10) * (float("{factor}") if len(inputs) > 1 else 1)  # not where groups are described

        module = nn.Module()
        module.first, module.second = nn.Identity(), Times()
        return module

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(
            name="factor",
            description="multiplies",
            input=ImageInput(size=16, smallest=8),
            layer_groups=("first", "second"),
            build=build,
            weights=Weights(find=lambda: Path(__file__), install="", origin="", license="", sha256=""),
        )
"""


class Scene:
    """A backbone of a search, about to pass all samples."""

    def __init__(self, search, name, stored=None):
        self.search, self.backbone = search, search.host.backbone(name)
        self.stored = stored or search.stored[name]
        self.files = [search.prepared.files(self.backbone, split) for split in ("train", "validation")]
        self.opened = [files.open(self.backbone) for files in self.files]
        self.n = sum(len(split.labels) for split in self.opened)
        self.heard = []

    def passes(self, crew, cuts=()):
        return pass_backbone(
            self.search.host,
            self.backbone,
            self.stored,
            self.files,
            crew,
            lambda *said: self.heard.append(said),
            sitting=self.search.clock.began,
            cuts=cuts,
        )

    def rows(self, passed, tap):
        return [pooled_rows(passed.network, split.samples, [tap], "mean_std") for split in self.opened]


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """What is fastest here is another question; a child of its own asks it all the same."""
    monkeypatch.setattr(module, "prefers_bfloat16", says_no)


def says_no(order, device):
    return False


@pytest.fixture
def pictures(picture_search, tmp_path):
    scene = Scene(picture_search, "trained0")
    store = FeatureStore(root=tmp_path / "store", budget=1 << 30)
    return Scene(picture_search, "trained0", replace(scene.stored, network=replace(scene.stored.network, store=store)))


def entry_of(passed, dtype="float16"):
    return passed.network.pooled(dtype)


def test_every_sample_passes_once(pictures, crew):
    passed = pictures.passes(crew)
    assert (passed.rows, passed.notes) == (pictures.n, ())
    assert passed.network.seconds_per_row > 0
    again = pictures.passes(crew)
    assert (again.rows, again.notes) == (0, ())
    assert again.network == passed.network
    assert facts_of(entry_of(passed).directory).rows == pictures.n


def test_what_is_stored_is_what_every_group_gives(pictures, crew):
    passed = pictures.passes(crew)
    activation = pictures.opened[1].rows.batch(np.arange(len(pictures.opened[1].labels)), "cpu")
    with torch.no_grad():
        for tap, group in enumerate(network_of(pictures.backbone, pictures.stored, "cpu"), start=1):
            activation = group(activation)
            got = torch.from_numpy(pictures.rows(passed, tap)[1].features())
            torch.testing.assert_close(got, pool(activation, "mean_std"), atol=3e-3, rtol=3e-3)


def test_whole_outputs_that_will_be_wanted_are_stored_in_the_same_pass(pictures, crew):
    passed = pictures.passes(crew, cuts=(2, 1))
    assert passed.rows == pictures.n
    activation = pictures.opened[1].rows.batch(np.arange(len(pictures.opened[1].labels)), "cpu")
    with torch.no_grad():
        for cut, group in enumerate(network_of(pictures.backbone, pictures.stored, "cpu")[:2], start=1):
            activation = group(activation)
            stored = rows_at(passed.network, pictures.opened[1].samples, cut)
            got = stored.batch(np.arange(len(stored)), "cpu")
            torch.testing.assert_close(got, activation, atol=3e-3, rtol=3e-3)
    both = sum(facts_of(passed.network.activations(cut, "float16").directory).seconds for cut in (1, 2))
    assert passed.network.seconds_per_row * pictures.n == pytest.approx(both)  # what a pass takes, not a share of it


@pytest.mark.parametrize("reason", ["too much", "no room", "there already"])
def test_nobody_has_asked_for_them_so_nothing_is_given_up_for_them(pictures, crew, monkeypatch, reason):
    whole = pictures.stored.network.activations(1, "float16")
    if reason == "too much":
        monkeypatch.setattr(module, "MOST_BYTES", 1000)
    elif reason == "no room":
        room = pictures.n * pictures.stored.network.width() * 2 + 1000
        network = replace(pictures.stored.network, store=replace(pictures.stored.network.store, budget=room))
        pictures.stored = replace(pictures.stored, network=network)
    else:
        pictures.passes(crew)
    assert pictures.passes(crew, cuts=(1,)).rows == (0 if reason == "there already" else pictures.n)
    assert rows_at(pictures.stored.network, pictures.opened[1].samples, 1) is None
    assert not facts_of(whole.directory).rows


def test_whole_outputs_that_float16_cannot_hold_are_left_out(pictures, crew, monkeypatch):
    """Nobody has asked for them; the pooled ones stay in the narrow type."""
    true = one_pass._array

    def too_large(output, dtype):
        if output.ndim == 4 and dtype == "float16":
            raise one_pass.OutOfRange("too large")
        return true(output, dtype)

    monkeypatch.setattr(one_pass, "_array", too_large)
    passed = pictures.passes(crew, cuts=(1,))
    assert facts_of(entry_of(passed).directory).rows == pictures.n
    assert not facts_of(entry_of(passed, "float32").directory).rows
    assert rows_at(passed.network, pictures.opened[1].samples, 1) is None


def test_one_hears_how_far_it_is_and_nothing_is_left_of_the_telling(pictures, crew):
    passed = pictures.passes(crew)
    said = {(what, n) for what, _, n in pictures.heard}
    assert said == {("passing trained0", pictures.n)}
    assert [done for _, done, _ in pictures.heard][-1] == pictures.n
    assert not list(entry_of(passed).directory.glob("done-*"))


def test_of_more_samples_only_the_new_ones_pass(pictures, crew):
    train = pictures.files.pop(0)
    assert pictures.passes(crew).rows == len(pictures.opened[1].labels)
    pictures.files.insert(0, train)
    assert pictures.passes(crew).rows == len(pictures.opened[0].labels)


def test_a_damaged_shard_is_named_and_its_rows_are_computed_again(pictures, crew, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 16)
    monkeypatch.setattr(one_pass, "SHARD_ROWS", 16)
    passed = pictures.passes(crew)
    before = [rows.features() for rows in pictures.rows(passed, 3)]
    damaged = shard_directories(entry_of(passed).directory / "shards")[0]
    n_rows = len(np.load(damaged / "rows.npy"))
    values = bytearray((damaged / "values.npy").read_bytes())
    values[-1] ^= 255
    (damaged / "values.npy").write_bytes(values)
    again = pictures.passes(crew)
    assert again.rows == n_rows
    [note] = again.notes
    assert note == (
        f"shard {damaged.name[:4]}… of trained0, pooled features: checksum differs; its rows are computed again"
    )
    for rows, expected in zip(pictures.rows(again, 3), before, strict=True):
        np.testing.assert_allclose(rows.features(), expected, atol=2e-3)


def test_without_room_one_is_told_what_to_raise(pictures, crew):
    small = FeatureStore(root=pictures.stored.network.store.root, budget=100)
    pictures.stored = replace(pictures.stored, network=replace(pictures.stored.network, store=small))
    with pytest.raises(TrialError, match=r"of trained0 take .* GiB, more than the cache may hold; .*cache\.budget_gib"):
        pictures.passes(crew)


def test_another_builder_is_waited_for(pictures, crew):
    entry, waiting = pictures.stored.network.pooled("float16"), threading.Event()
    results = []

    def build():
        results.append(pictures.passes(crew))

    with entry.building():
        other = threading.Thread(target=build)
        other.start()
        while ("another run passes trained0", 0, 1) not in pictures.heard:
            assert not waiting.wait(0.05)
            assert other.is_alive()
        indices = np.arange(len(pictures.opened[0].labels))
        split = pictures.opened[0]
        order = one_pass.Pass(
            groups=network_of(pictures.backbone, pictures.stored, "cpu"),
            rows=split.rows,
            digests=split.digests,
            pooled=entry,
        )
        one_pass.compute(order, indices)
    other.join(30)
    [passed] = results
    assert passed.rows == len(pictures.opened[1].labels)  # all but what the other one has stored


# Types.


def factor_scene(make_picture_search, factor):
    search = make_picture_search(plugins={"factor": FACTOR.format(factor=factor)}, trained=(), backbones=("factor",))
    return Scene(search, "factor")


def test_outputs_too_large_for_float16_are_stored_in_float32_and_found_again(make_picture_search, crew, monkeypatch):
    """The inline slot goes on after the exception that its first try ended with."""
    scene = factor_scene(make_picture_search, "1e6")
    passed = scene.passes(crew)
    assert passed.rows == scene.n
    assert entry_of(passed, "float16").open(scene.opened[0].digests) is None
    assert float(scene.rows(passed, 2)[0].features().max()) > 1e6
    monkeypatch.setattr(module, "run_pass", lambda order, device: pytest.fail("passed again"))
    again = scene.passes(crew)
    assert again.rows == 0
    assert again.network.seconds_per_row == passed.network.seconds_per_row > 0


def test_outputs_that_are_no_numbers_are_refused(make_picture_search, crew):
    scene = factor_scene(make_picture_search, "nan")
    with pytest.raises(TrialError, match="'factor': its outputs are not finite"):
        scene.passes(crew)
    assert crew.children.run(crew.slots[0], int, "7") == 7


def test_a_backbone_that_raises_is_named(make_picture_search, crew):
    scene = factor_scene(make_picture_search, "no number")
    with pytest.raises(TrialError, match="'factor' cannot pass the samples: ValueError: could not convert string"):
        scene.passes(crew)
    assert crew.children.run(crew.slots[0], int, "7") == 7


# Children.


@pytest.fixture(scope="module")
def two():
    with Children(TWO) as children:
        yield Crew(slots=TWO, children=children)


@pytest.fixture
def deadly(make_picture_search, monkeypatch):
    """Return a function that makes a scene whose backbone kills that many children."""
    monkeypatch.setattr(module, "SHARD_ROWS", 30)

    def make(deaths):
        search = make_picture_search(
            plugins={"deadly": DEADLY.format(deaths=deaths)}, trained=(), backbones=("deadly",)
        )
        return Scene(search, "deadly")

    return make


def test_a_killed_child_costs_nothing_but_its_block(deadly, two):
    scene = deadly(1)
    passed = scene.passes(two)
    assert passed.rows == scene.n
    assert facts_of(entry_of(passed).directory).rows == scene.n
    assert all(rows is not None for rows in scene.rows(passed, 2))
    assert not list((entry_of(passed).directory / "shards").glob("*.partial"))
    assert scene.passes(two).rows == 0


def test_a_backbone_that_kills_child_after_child_is_given_up(deadly, two):
    scene = deadly(99)
    with pytest.raises(TrialError, match=r"'deadly' cannot pass the samples: .*SIGKILL.*; use fewer slots"):
        scene.passes(two)
    assert two.children.run(TWO[0], int, "7") == 7


def test_the_slots_share_a_pass(pictures, two, monkeypatch):
    """And children find the same features as the calling process does."""
    monkeypatch.setattr(module, "SHARD_ROWS", 16)
    passed = pictures.passes(two)
    assert passed.rows == pictures.n
    assert len(shard_directories(entry_of(passed).directory / "shards")) > 2


def test_random_weights_of_one_seed_are_found_again(picture_search, crew):
    host, prepared, groups = picture_search.host, picture_search.prepared, picture_search.context.backbones["trained0"]
    backbone = host.backbone("trained0")
    drawn = [stored_network(host, backbone, prepared, groups, None, 0.4, random_seed=seed) for seed in (1, 2)]
    one, other = (Scene(picture_search, "trained0", stored) for stored in drawn)
    passed, others = one.passes(crew), other.passes(crew)
    assert passed.rows == others.rows == one.n
    assert passed.network.weights != others.network.weights
    assert not np.allclose(one.rows(passed, 3)[0].features(), other.rows(others, 3)[0].features())
    assert one.passes(crew).rows == 0
