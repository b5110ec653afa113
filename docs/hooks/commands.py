"""Shows the output of commands on pages; the commands run while the site is built.

    <!-- printed: unscheduled inspect checkpoint.pt -->

is replaced by the command and its output in a folder with a ``checkpoint.pt`` of a small run and an empty cache.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mkdocs.exceptions import PluginError
from torch import nn

from unscheduled import AdamWScheduleFree, cli

MARK = re.compile(r"^<!-- printed: unscheduled (.+) -->$", re.MULTILINE)
WIDTH = "88"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Run the commands of a page, and insert their output."""
    return MARK.sub(lambda mark: f"```console\n$ unscheduled {mark[1]}\n{printed(mark[1])}\n```", markdown)


@functools.cache
def printed(arguments: str) -> str:
    """The output of the command ``unscheduled`` with these arguments."""
    output, code = io.StringIO(), None
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, COLUMNS=WIDTH, UNSCHEDULED_CACHE=str(Path(folder, "cache"))),
    ):
        os.chdir(folder)
        try:
            save_checkpoint()
            with contextlib.redirect_stdout(output):
                cli.main(shlex.split(arguments))
        except SystemExit as end:
            code = end.code
        finally:
            os.chdir(here)
    if code:
        raise PluginError(f"unscheduled {arguments}: exit code {code}")
    return output.getvalue().rstrip()


def save_checkpoint() -> None:
    """Train a small model for 100 steps, and save it with its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        optimizer = AdamWScheduleFree(model.parameters(), lr=3e-3, warmup_steps=20, implementation="loop").attach(model)
        for _ in range(100):
            optimizer.zero_grad()
            model(torch.randn(32, 8)).square().mean().backward()
            optimizer.step()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")
