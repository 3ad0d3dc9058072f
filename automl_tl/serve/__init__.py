"""The trained model on its own: saved into a run's `model/`, loaded in any process, used to predict."""
