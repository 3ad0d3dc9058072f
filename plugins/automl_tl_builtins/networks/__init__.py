"""The networks of the built-in backbones and heads; of the built-ins only they import torch at module level."""
