"""`python -m sandhost`: the command line."""

from sandhost.cli import main

main()
