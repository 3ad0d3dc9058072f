"""From which depth on transferred features are no better than random ones."""

import json

import pytest

from automl_tl.finish.by_depth import DepthGain, gone_from


def gains(*lows):
    return [
        DepthGain(layer_group=f"g{number}", transferred=0.6, random=0.5, gain=0.1, interval=(low, 0.3))
        for number, low in enumerate(lows)
    ]


@pytest.mark.parametrize(
    ("lows", "name"),
    [
        ((0.1, 0.1, 0.1), None),
        ((0.1, 0.1, -0.1), "g2"),
        ((-0.1, 0.1, 0.0, -0.1), "g2"),  # a tap before it may gain nothing either
        ((0.1, -0.1, 0.1), None),
        ((-0.1, -0.1), "g0"),
        ((), None),
    ],
)
def test_the_gain_is_gone_where_no_deeper_group_has_one(lows, name):
    assert gone_from(gains(*lows)) == name


def test_plain_data():
    values = json.loads(json.dumps(gains(0.1)[0].to_json()))
    assert values == {"layer_group": "g0", "transferred": 0.6, "random": 0.5, "gain": 0.1, "interval": [0.1, 0.3]}
