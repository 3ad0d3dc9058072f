"""Names a layer group twice."""

from automl_tl.plugin import Backbone, TabularInput, hookimpl


@hookimpl
def automl_tl_backbones():
    yield Backbone(name="repeated", description="", input=TabularInput(), layer_groups=("a", "b", "a"), build=print)
