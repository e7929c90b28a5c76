"""The command line: Lightning's verbs, the small tools, run folders and the tests that follow a training."""

from uscl.cli.command_line import main

__all__ = ["main"]
