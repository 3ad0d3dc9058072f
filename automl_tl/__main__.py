"""`python -m automl_tl` is `automl-tl`."""

from automl_tl.cli import main

main()
