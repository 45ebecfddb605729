"""`python -m foretrace`."""

from .cli import main

main()
