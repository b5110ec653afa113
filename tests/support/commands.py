"""Runs the command ``unscheduled`` within a test."""

from typing import Any

import pytest

from unscheduled.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Run a subcommand; return its exit status, and its output on stdout and stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(exit_info.value.code or 0), output.out, output.err
