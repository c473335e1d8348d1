"""`python -m sysscan_models` is the command line."""

from sysscan_models.cli import main

main()
