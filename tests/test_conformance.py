"""The conformance kit over every installed plugin: a new one is tested without writing a test."""

from automl_tl.host import load_host
from automl_tl.testing import parametrized_test

HOST = load_host()

test_conforms = parametrized_test([*HOST.backbones.values(), *HOST.heads.values(), *HOST.strategies.values()])


def test_every_installed_plugin_loads():
    assert HOST.broken() == ()
    assert all(record.provides for record in HOST.records)
