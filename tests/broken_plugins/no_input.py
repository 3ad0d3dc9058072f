"""Says its modality, not its input."""

from automl_tl.plugin import Backbone, hookimpl


@hookimpl
def automl_tl_backbones():
    yield Backbone(name="unclear", description="", input="image", layer_groups=("a",), build=print)
