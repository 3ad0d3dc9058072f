import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.engine.slots import parse_slots
from automl_tl.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_list_of_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("text", "cores", "gpus", "names", "threads"),
    [
        ("auto", 2, 0, ["cpu0"], 2),
        ("auto", 1, 0, ["cpu0"], 1),
        ("auto", 9, 0, ["cpu0", "cpu1", "cpu2", "cpu3"], 2),
        ("auto", 16, 2, ["cuda0", "cuda1"], 8),
        ("2", 2, 0, ["cpu0", "cpu1"], 1),
        ("3", 8, 0, ["cpu0", "cpu1", "cpu2"], 2),
        ("3", 12, 2, ["cuda0-0", "cuda0-1", "cuda1"], 4),
        ("cpu", 4, 0, ["cpu0"], 4),
        ("cpu*2", 2, 1, ["cpu0", "cpu1"], 1),
        ("cpu*4", 2, 0, ["cpu0", "cpu1", "cpu2", "cpu3"], 1),
        ("cpu,cpu*2", 6, 0, ["cpu0", "cpu1", "cpu2"], 2),
        ("cuda:1", 4, 2, ["cuda1"], 4),
        (" cuda:0*2, cuda:1 ", 12, 2, ["cuda0-0", "cuda0-1", "cuda1"], 4),
        ("cuda:0,cpu", 4, 1, ["cuda0", "cpu0"], 2),
        ("inline", 2, 0, ["inline"], 2),
    ],
)
def test_text_gives_slots(text, cores, gpus, names, threads):
    slots = parse_slots(text, cores=cores, gpus=gpus)

    assert [slot.name for slot in slots] == names
    assert {slot.threads for slot in slots} == {threads}
    assert [slot.inline for slot in slots] == [name == "inline" for name in names]
    assert [slot.device for slot in slots] == ["cuda" if name.startswith("cuda") else "cpu" for name in names]


def test_each_slot_sees_its_own_gpu_and_its_own_threads():
    on_gpu, on_cpu = parse_slots("cuda:1,cpu", cores=6, gpus=2)

    assert dict(on_gpu.environment) == {
        "CUDA_VISIBLE_DEVICES": "1",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    assert dict(on_cpu.environment)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("listed", "expected"), [("3,5", "5"), ("GPU-aa, GPU-bb", "GPU-bb"), ("3,5,-1,6", "5"), ("", "1")]
)
def test_gpus_are_counted_within_the_list_that_is_already_set(monkeypatch, listed, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    (slot,) = parse_slots("cuda:1", cores=4, gpus=2)

    assert dict(slot.environment)["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu*2", "slots: 'gpu*2' is not a slot; expected auto, inline, a number, cpu*K or cuda:I*K joined by commas"),
        ("", "slots: '' is not a slot"),
        ("cpu,", "slots: '' is not a slot"),
        ("-1", "slots: '-1' is not a slot"),
        ("cuda", "slots: 'cuda' is not a slot"),
        ("0", "slots: '0' asks for no slot, at least 1 is needed"),
        ("cpu*0", "slots: 'cpu*0' asks for no slot"),
        ("cuda:0", "slots: 'cuda:0' is not there, torch sees no GPU; use one that is, cpu*K or auto"),
    ],
)
def test_what_is_no_slot_is_named(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_slots(text, cores=2, gpus=0)
    assert str(caught.value).startswith(message)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"'cuda:2' is not there, torch sees 2 \(from cuda:0 to cuda:1\)"):
        parse_slots("cuda:0,cuda:2*2", cores=2, gpus=2)


_texts = st.one_of(
    st.just("auto"),
    st.just("inline"),
    st.integers(1, 40).map(str),
    st.lists(
        st.tuples(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), st.integers(1, 9)).map(
            lambda item: f"{item[0]}*{item[1]}"
        ),
        min_size=1,
        max_size=5,
    ).map(",".join),
)


@settings(deadline=None, max_examples=50)
@given(text=_texts, cores=st.integers(1, 128), gpus=st.integers(2, 8))
def test_cores_are_never_oversubscribed_and_names_are_unique(text, cores, gpus):
    slots = parse_slots(text, cores=cores, gpus=gpus)

    assert sum(slot.threads for slot in slots) <= max(cores, len(slots))
    assert len({slot.name for slot in slots}) == len(slots) >= 1
