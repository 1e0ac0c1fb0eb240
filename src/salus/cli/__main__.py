"""`python -m salus.cli`: the `salus` command where its script is not on the path."""

from .app import main

main()
