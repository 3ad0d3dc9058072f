"""Rivals of `automl-tl search`: what else a user could do with the same weights, data and time.

Each is a program for one task directory. It makes its own validation split, and prints one JSON line with the curve of
its incumbents: [[seconds since it was started, test macro-F1], ...]. From automl_tl they import how files are read and
how a backbone is built, so that samples and network are exactly the same; how to search and train is their own.
`benchmarks/anytime.py` starts them: `python -m rivals.plain_optuna TASK_DIR`, with benchmarks/ on PYTHONPATH.
"""
