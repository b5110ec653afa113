"""The README says what is: its example runs, and its figures are those of the files that it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    model = nn.Linear(2, 1)
    names: dict[str, Any] = {
        "model": model,
        "loader": [(torch.randn(4, 2), torch.randn(4, 1))] * 3,
        "loss_fn": nn.MSELoss(),
        "torch": torch,
    }
    exec(example, names)
    x = names["optimizer"].iterates(model.weight).x
    assert torch.equal(torch.load("model.pt", weights_only=True)["weight"], x)
    assert torch.equal(model.weight, x)
    assert not torch.equal(model.train().weight, x)  # training goes on from y


def test_the_figures_are_those_of_the_race() -> None:
    name = "docs/results/char-lm/race.json"
    assert f"]({name})" in README
    race = json.loads((ROOT / name).read_text())
    for horizon in race["horizons"]:
        results = [result for result in race["results"] if result["horizon"] == horizon]
        figures = [f"{result['mean']:.3f} ± {result['standard_error']:.3f}" for result in results]
        assert f"| {horizon:,} | {' | '.join(figures)} |" in README


def test_the_figures_of_the_family_are_those_of_its_race() -> None:
    race = json.loads((ROOT / "docs/results/family/char-lm/race.json").read_text())
    last = {result["contender"]: result for result in race["results"] if result["horizon"] == race["horizons"][-1]}
    figures = {name: f"{last[name]['mean']:.3f} ± {last[name]['standard_error']:.3f}" for name in last}
    text = " ".join(README.split())
    assert f"AMUSE's β reached {figures['amuse']} and" in text
    assert (
        f"without any learning rate (with `norm_beta=0`), {figures['plus']}, against {figures['schedule-free']} of"
        in text
    )
    assert f"and {figures['linear']} of AdamW with linear decay" in text
    digits = json.loads((ROOT / "docs/results/family/digits/race.json").read_text())
    ahead = [one["contender"] for one in digits["results"] if (one["horizon"], one.get("verdict")) == (1000, "worse")]
    assert ahead == ["lion"]


def test_every_file_it_points_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("https://")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
