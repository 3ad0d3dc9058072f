"""The search: which specs to try, in what order, and when to stop. Optuna decides, the engine runs, training trains."""
