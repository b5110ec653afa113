"""The site of the documentation builds without a warning, has all that is public, and needs nothing from elsewhere."""

import importlib.util
import inspect
import math
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

import unscheduled
from unscheduled import ExponentialAveraging, PolynomialAveraging, ScheduleFreeOptimizer
from unscheduled.lab.contenders import CONTENDERS

ROOT = Path(__file__).parent.parent
OF_ATTACHED_MODELS = {"after_load", "before_load", "end_load", "follow", "shared", "steps"}
"""Methods that are public only to the modules of the library."""


def hook(name: str) -> ModuleType:
    """A module of docs/hooks."""
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page points to, loads, and has anchors for."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in given:
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    lines = (built.stdout + built.stderr).splitlines()
    assert [line for line in lines if line and not line.startswith("INFO")] == []
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """The pages made of Markdown, by their path."""
    sources = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    return {path.as_posix(): Page(site / path) for path in (source.with_suffix(".html") for source in sources)}


def inventory(site: Path) -> dict[str, str]:
    """Where the site describes each object."""
    text = zlib.decompress((site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]).decode()
    lines = [line.split(" ") for line in text.splitlines()]
    return {name: location.replace("$", name) for name, _, _, location, *_ in lines}


def test_all_that_is_public_is_in_the_reference(site: Path, pages: dict[str, Page]) -> None:
    described = inventory(site)
    names = [
        name for name, value in vars(unscheduled).items() if not name.startswith("_") and not inspect.ismodule(value)
    ]
    methods = [
        name
        for kind in ScheduleFreeOptimizer.__mro__
        if kind.__module__.startswith("unscheduled")
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]
    wanted = {*names, *(f"ScheduleFreeOptimizer.{name}" for name in methods if name not in OF_ATTACHED_MODELS)}
    assert {"AdamWScheduleFree", "ScheduleFreeOptimizer.attach", "ScheduleFreeOptimizer.training"} <= wanted
    for name in (*sorted(wanted), "lab.task.Task", "lab.task.OptimizerSettings"):
        page, anchor = described[f"unscheduled.{name}"].split("#")
        assert page.startswith("api/")
        assert anchor in pages[page].anchors


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    lost: list[tuple[str, str]] = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            file = (site / path).parent / unquote(parts.path) if parts.path else site / path
            file = file / "index.html" if file.is_dir() else file
            target = pages.get(os.path.relpath(file, site))
            if not file.is_file() or (parts.fragment and target and unquote(parts.fragment) not in target.anchors):
                lost.append((path, link))
    assert lost == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loaded = [source for page in pages.values() for source in page.loaded]
    assert any(source.endswith(".js") for source in loaded)
    assert [source for source in loaded if urlsplit(source).scheme not in ("", "data")] == []
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?https?:[^)]*|@import[^;]*", styles) == []


def test_nothing_of_a_docstring_is_left_unread(site: Path, pages: dict[str, Page]) -> None:
    reference = "".join((site / path).read_text() for path in pages if path.startswith("api/"))
    assert re.findall(r":(?:class|func|meth|mod):|&amp;lt;|&amp;gt;", reference) == []
    assert "&lt;g_i, z_i - y_i&gt;" in reference


def test_the_pictures_are_in_the_page_in_the_colour_of_its_text(site: Path) -> None:
    page = (site / "how-it-works.html").read_text()
    assert page.count("<figure") == page.count("</svg></figure>") + page.count("</svg>\n</figure>") == 3
    assert "#010203" not in page
    assert page.count("currentColor") > 3


def test_what_commands_print_is_on_their_page(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "api" / "commands.html").read_text())
    assert "the weights are  x, the average" in page
    assert "model.safetensors: 4 tensors, of which 4 are the average x" in page
    assert [name for name in CONTENDERS if f"\n  {name} " not in page] == []


@pytest.mark.parametrize("r", [0.0, 1.0, 4.0])
def test_the_weights_of_the_picture_are_the_powers_of_the_step(r: float) -> None:
    powers = torch.arange(1, 101, dtype=torch.float64) ** r
    shares = torch.from_numpy(hook("pictures").shares(PolynomialAveraging(r=r), 0, 100))
    torch.testing.assert_close(shares, powers / powers.sum(), rtol=1e-9, atol=1e-12)


def test_the_weights_of_the_picture_in_a_warmup_are_the_squares_of_the_rates() -> None:
    squares = (torch.arange(1, 101, dtype=torch.float64) / 20).clamp(max=1.0) ** 2
    shares = torch.from_numpy(hook("pictures").shares(PolynomialAveraging(), 20, 100))
    torch.testing.assert_close(shares, squares / squares.sum(), rtol=1e-9, atol=1e-12)


def test_the_weights_of_the_picture_of_an_exponential_average() -> None:
    ages = torch.arange(99, -1, -1, dtype=torch.float64)
    shares = torch.from_numpy(hook("pictures").shares(ExponentialAveraging(c=0.1), 0, 100))
    torch.testing.assert_close(shares, 0.1 * 0.9**ages, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lr", [0.02, 0.15])
def test_what_is_said_of_the_picture_of_betas(lr: float) -> None:
    """Of those that are drawn 0.5 is the best at the end, 1 the worst; 0 diverges above 2/25."""
    pictures = hook("pictures")
    losses = {beta: float(pictures.loss(pictures.run(lr, beta, 1000).x[-1]).mean()) for beta in (0.0, 0.5, 0.9, 1.0)}
    assert math.isnan(losses[0.0]) == (lr > 2 / 25)
    finite = {beta: loss for beta, loss in losses.items() if not math.isnan(loss)}
    assert min(finite, key=finite.__getitem__) == 0.5
    assert max(finite, key=finite.__getitem__) == 1.0


def test_a_picture_is_the_same_each_time() -> None:
    assert hook("pictures").svg("weights") == hook("pictures").svg("weights")


def test_a_docstring_becomes_markdown() -> None:
    given = """Weigh a*b and <g, d>, see :meth:`attach`, :class:`PolyakStep` and :mod:`unscheduled.kernels`.

        w = a * b < c

    Args:
        a: one of ``a*b``.

            a * b

    Example:
        >>> 2**3 < 9
        True

    Source: arXiv 2405.15682."""
    wanted = """Weigh a\\*b and &lt;g, d>, see [`attach`][unscheduled.ScheduleFreeOptimizer.attach], \
[`PolyakStep`][unscheduled.PolyakStep] and `unscheduled.kernels`.

        w = a * b < c

    Args:
        a: one of ``a*b``.

            a * b

    Examples:
        >>> 2**3 < 9
        True

    Source: [arXiv 2405.15682](https://arxiv.org/abs/2405.15682)."""
    assert hook("docstrings").markdown(inspect.cleandoc(given)) == inspect.cleandoc(wanted)


def test_parts_of_other_files_come_with_links_from_the_page() -> None:
    pages: Any = hook("pages")
    part = pages.part("README.md", "## Checkpoints", "## Frameworks and distributed training")
    assert part.startswith("Save `model.state_dict()`")
    assert "## " not in part
    with pytest.raises(pages.PluginError, match=r"0 lines of README\.md begin with '## No such'"):
        pages.part("README.md", "## No such", None)
    with pytest.raises(pages.PluginError, match=r"\d+ lines of README.md begin with '## '"):
        pages.part("README.md", "## ", None)
    with pytest.raises(pages.PluginError, match="has '## Frameworks and distributed training' in it"):
        pages.part("README.md", "## Checkpoints", "## Speed and memory")
    text = "[docs/family.md](docs/family.md) [a](src/a.json) [b](https://b)"
    assert pages.linked(text, "", "results/index.md") == "[The family](../family.md) [a](../src/a.json) [b](https://b)"
    assert pages.linked("[a](../src/a.json) [b](c.md)", "docs", "family.md") == "[a](src/a.json) [b](c.md)"
