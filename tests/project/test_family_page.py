"""The page of the family says what is: its examples run, and its figures are those of the files that it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unscheduled
from unscheduled.lab.contenders import CONTENDERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "family.md").read_text()


def row(name: str) -> str:
    """The line of a table that is about a contender."""
    (line,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
    return line


def test_the_examples_run_one_after_the_other() -> None:
    model = nn.Linear(2, 1)
    names: dict[str, Any] = {
        "model": model,
        "loader": [(torch.randn(4, 2), torch.randn(4, 1))] * 3,
        "loss_fn": nn.MSELoss(),
        "torch": torch,
    }
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    exec(examples[0], names)
    another = nn.Linear(2, 1)
    optimizer = names["optimizer"] = unscheduled.AdamWScheduleFree(another.parameters())
    another(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    exec(examples[1], names)
    assert isinstance(names["plain"], torch.optim.AdamW)
    names["plain"].step()
    names["schedule"].step()


@pytest.mark.parametrize("task", ["char-lm", "digits"])
def test_the_figures_are_those_of_the_race(task: str) -> None:
    name = f"results/family/{task}/race.json"
    assert f"]({name})" in PAGE
    race = json.loads((ROOT / "docs" / name).read_text())
    assert set(race["contenders"]) <= set(CONTENDERS)
    last = race["horizons"][-1]
    for result in race["results"]:
        if result["horizon"] == last:
            assert f"| {result['mean']:.3f} ± {result['standard_error']:.3f} " in row(result["contender"])


def test_it_names_what_there_is() -> None:
    names = re.findall(r"[`=]([A-Z]\w+)\(", PAGE)
    assert [name for name in names if not hasattr(unscheduled, name)] == []
    methods = re.findall(r"`optimizer\.(\w+)\(", PAGE)
    assert [name for name in methods if not hasattr(unscheduled.ScheduleFreeOptimizer, name)] == []
    assert len(names) > 10
    assert len(methods) > 1


def test_every_file_it_points_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
