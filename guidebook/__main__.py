"""``python -m guidebook``: the command line."""

from guidebook.command_line import main

main()
