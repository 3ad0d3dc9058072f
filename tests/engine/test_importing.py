"""Garbage collection rests while much is imported, and no longer."""

import gc

import pytest

from automl_tl.engine.importing import importing


@pytest.mark.parametrize("fails", [False, True])
def test_collection_rests_inside_and_goes_on_outside(fails):
    try:
        with importing():
            assert not gc.isenabled()
            if fails:
                raise ImportError
    except ImportError:
        pass
    assert gc.isenabled()


def test_who_had_switched_collection_off_keeps_it_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
