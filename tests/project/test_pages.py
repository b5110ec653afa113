"""The pages of the site say what is: their examples run, and the names in them exist."""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unscheduled

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
OWN_TESTS = ("distributed.md", "family.md", "frameworks/", "learning-rate-free.md")
"""Whose examples are run by tests of their own."""


def blocks(page: str) -> list[str]:
    return [textwrap.dedent(code) for _, code in BLOCK.findall(PAGES[page])]


RUN = [page for page in PAGES if blocks(page) and (not page.startswith(OWN_TESTS) or page == "frameworks/training.md")]


def given(page: str) -> dict[str, Any]:
    """What a reader of a page has already: a model, its data and a loss, and what the page speaks of."""
    model: nn.Module = nn.Linear(2, 1)
    if page == "batchnorm.md":
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = unscheduled.AdamWScheduleFree(model.parameters())
    adamw = torch.optim.AdamW(model.parameters())
    loss_fn = nn.MSELoss()
    loader = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(3)]
    if page == "migrating.md":
        for inputs, targets in loader:
            loss_fn(model(inputs), targets).backward()
            adamw.step()
        torch.save(model.state_dict(), "model.pt")
        torch.save(adamw.state_dict(), "adamw.pt")
    names = {"model": model, "optimizer": optimizer, "loader": loader, "loss_fn": loss_fn, "torch": torch}
    return names | ({"AdamWScheduleFree": unscheduled.AdamWScheduleFree} if page.startswith("frameworks/") else {})


def test_there_are_pages_and_examples() -> None:
    assert {"index.md", "api/optimizers.md", "frameworks/index.md"} <= set(PAGES)
    assert {"how-it-works.md", "migrating.md", "checkpoints.md", "batchnorm.md", "settings.md"} <= set(RUN)
    assert [page for page, text in PAGES.items() if len(blocks(page)) != text.count("```python")] == []


@pytest.mark.filterwarnings("ignore:.* moves parameters that")  # what was written before, on the same model
@pytest.mark.parametrize("page", RUN)
def test_the_examples_run_one_after_the_other(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given(page)
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_what_the_examples_take_from_the_library_is_there(page: str) -> None:
    for code in blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "unscheduled":
                assert [name.name for name in node.names if not hasattr(unscheduled, name.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"unscheduled": unscheduled, "optimizer": unscheduled.ScheduleFreeOptimizer}.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr) or node.attr in ("base", "param_groups", "state")


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_library_in_the_text_exist(page: str) -> None:
    """In the text a call of something with a capital letter is one of the library's, or says whose it is."""
    text = BLOCK.sub("", PAGES[page])
    names = set(re.findall(r"`(\w*(?:ScheduleFree|Averaging|Interpolation|PolyakStep|ScheduleFreePlus)\w*)\b", text))
    assert [name for name in names if not hasattr(unscheduled, name)] == []
    methods = set(re.findall(r"`optimizer\.(\w+)\(", text))
    assert [name for name in methods if not hasattr(unscheduled.ScheduleFreeOptimizer, name)] == []


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(text for page, text in PAGES.items() if page.startswith("api/") and page != "api/index.md")
    public = [
        name for name, value in vars(unscheduled).items() if getattr(value, "__module__", "")[:11] == "unscheduled"
    ]
    assert len(public) > 20
    assert [name for name in public if f"::: unscheduled.{name}\n" not in reference] == []
    assert [name for name in public if f"[unscheduled.{name}]" not in PAGES["api/index.md"]] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    assert [page for page in PAGES if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)] == []
