"""The search: which specs to try, in what order, and when to stop one. Optuna decides; the engine runs; training trains."""
