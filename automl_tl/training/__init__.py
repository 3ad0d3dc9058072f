"""The one training loop, its losses, optimizers and metrics. Knows one model and one task; nothing of studies."""
