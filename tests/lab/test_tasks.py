"""The tasks that come with the library, on small random data: no test needs a data set."""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unscheduled.lab.run import RunSettings, checksum, tensors_in, train
from unscheduled.lab.task import Task, built_in_tasks, load_task
from unscheduled.lab.tasks import _clicks, _graph, _logistic

TABLES = [name for name in built_in_tasks() if name.startswith("logistic-")]
GRAPHS = ["cora-gcn", "pubmed-gcn"]
OTHERS = ["census-dlrm", "movielens", "shakespeare-gpt", "translation-lstm"]


def table(random: np.random.Generator) -> dict[str, Any]:
    features = random.normal(3.0, 2.0, (40, 5)).astype(np.float32)
    features[:, 4] = 7.0
    return {"features": features, "labels": np.arange(40) % 3}


def graph(random: np.random.Generator) -> dict[str, Any]:
    nodes = 50
    edges = np.array([(i, i + step) for step in (1, 7) for i in range(nodes - step)]).T
    features = random.integers(0, 2, (nodes, 8)).astype(np.float32)
    return {"features": features, "edges": edges, "labels": np.arange(nodes) % 3, "train": np.arange(6)}


def shakespeare(random: np.random.Generator) -> dict[str, Any]:
    return {"text": random.integers(60, 90, 210_000).astype(np.uint8)}


def verses(random: np.random.Generator) -> dict[str, Any]:
    def language() -> Any:
        ids = random.integers(4, 2000, (1200, 25)).astype(np.int32)
        ends = random.integers(2, 25, 1200)
        ids[:, 0] = 1
        ids[np.arange(1200), ends] = 2
        return np.where(np.arange(25) <= ends[:, None], ids, 0).astype(np.int32)

    return {"english": language(), "spanish": language()}


def movielens(random: np.random.Generator) -> dict[str, Any]:
    ratings, users, films = 20_300, 30, 20
    return {
        "user": random.integers(0, users, ratings),
        "item": random.integers(0, films, ratings),
        "rating": random.integers(1, 6, ratings),
        "user_age": random.integers(7, 74, users),
        "user_sex": random.integers(0, 2, users),
        "user_occupation": np.arange(users) % 21,
        "item_genres": random.integers(0, 2, (films, 19)).astype(np.float32),
        "item_year": np.append(random.integers(1922, 1999, films - 1), 0),
    }


def census(random: np.random.Generator) -> dict[str, Any]:
    arrays: dict[str, Any] = {"category_sizes": np.arange(2, 35)}
    for part in ("train", "test"):
        arrays[f"{part}_categories"] = random.integers(0, arrays["category_sizes"], (300, 33))
        arrays[f"{part}_numbers"] = random.integers(0, 99_999, (300, 7)).astype(np.float32)
        arrays[f"{part}_labels"] = np.arange(300) % 5 // 4
    return arrays


DATA = {
    "bible-verses": verses,
    "census-income": census,
    "cora": graph,
    "movielens": movielens,
    "pubmed": graph,
    "shakespeare": shakespeare,
}


def load(name: str) -> dict[str, Any]:
    """Takes the place of ``unscheduled.lab.data.load``."""
    return DATA.get(name, table)(np.random.default_rng(0))


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Task]]:
    """The tasks by name, on random data; nothing of these stays in their caches."""
    found = {name: load_task(name).task for name in [*TABLES, *GRAPHS, *OTHERS]}
    prefixes = ("unscheduled_task_", "unscheduled.lab.tasks.")
    modules = [module for name, module in sys.modules.items() if name.startswith(prefixes)]
    caches = [value for module in modules for value in vars(module).values() if hasattr(value, "cache_clear")]
    for module in modules:
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", load)
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def module_of(name: str) -> Any:
    """The module that a task's file has become."""
    return sys.modules["unscheduled_task_" + name.replace("-", "_")]


@pytest.mark.parametrize("name", [*TABLES, *GRAPHS, *OTHERS])
def test_a_task_trains_and_is_judged(tasks: Mapping[str, Task], name: str) -> None:
    task = tasks[name]
    assert task.steps // 20 == task.warmup_steps
    assert task.facts()["data sha256"]
    run = train(
        task, RunSettings("cosine", 0.01, dict(task.optimizers["AdamW"].options), 1, 2, (2,), 0), lambda step: None
    )
    assert run["diverged_at"] is None
    assert [step for step, _ in run["curve"]] == [2]
    assert all(math.isfinite(value) for values in run["others"].values() for value in values)


@pytest.mark.parametrize("name", [*TABLES, *GRAPHS, *OTHERS])
def test_batches_follow_from_the_seed(tasks: Mapping[str, Task], name: str) -> None:
    def first_batches(seed: int) -> str:
        batches = tasks[name].batches(torch.Generator().manual_seed(seed))
        return checksum(tensors_in(list(itertools.islice(batches, 3))))

    assert first_batches(1) == first_batches(1)
    assert (first_batches(1) == first_batches(2)) == (name in GRAPHS)


@pytest.mark.parametrize("name", [*TABLES, *GRAPHS, *OTHERS])
def test_grids_are_a_factor_of_two_apart(tasks: Mapping[str, Task], name: str) -> None:
    optimizers = tasks[name].optimizers
    for settings in optimizers.values():
        low, middle, high = settings.learning_rates
        assert (low, high) == (middle / 2, middle * 2)
    assert optimizers["AdamW"].options == optimizers["AdamWScheduleFree"].options


def test_features_are_standardised_and_constant_ones_are_0(tasks: Mapping[str, Task]) -> None:
    features, _ = _logistic.examples_of("iris")
    assert torch.allclose(features.mean(0), torch.zeros(5), atol=1e-6)
    assert torch.allclose(features.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))


def test_the_penalty_of_separable_classes(tasks: Mapping[str, Task]) -> None:
    """|W|^2 / 2n is added to the loss of wine, not to that of iris."""
    torch.manual_seed(0)
    model = tasks["logistic-wine"].model()
    batch = _logistic.examples_of("wine")
    losses = [tasks[f"logistic-{name}"].loss(model, batch).item() for name in ("wine", "iris")]
    assert losses[0] - losses[1] == pytest.approx(model.weight.square().sum().item() / (2 * 178), rel=1e-4)


def test_area_under_curve() -> None:
    """Of scores with ties, as scikit-learn has it."""
    random = np.random.default_rng(0)
    scores, clicks = random.integers(0, 20, 500), random.integers(0, 2, 500)
    found = _clicks.area_under_curve(torch.tensor(scores), torch.tensor(clicks))
    assert found == pytest.approx(roc_auc_score(clicks, scores), abs=1e-12)
    assert _clicks.area_under_curve(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])) == 0.0


def test_graph_convolutions_are_those_of_the_whole_graph() -> None:
    """On a path of three nodes, a fourth that hangs on its middle, and a fifth without neighbours."""
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 1], [1, 2, 3]])
    adjacency = torch.eye(5)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1.0
    degrees = torch.tensor([2.0, 4.0, 2.0, 2.0, 1.0])
    dense = adjacency / (degrees[:, None] * degrees[None, :]).sqrt()
    propagation = _graph.propagation_of(edges, 5)
    assert torch.allclose(propagation.to_dense(), dense)

    features, nodes = torch.randn(5, 6), torch.tensor([0, 4, 3])
    part = _graph.part_of(propagation, propagation @ features, torch.arange(5), nodes)
    assert part.propagated.shape == (4, 6)  # without node 2
    assert part.labels.tolist() == [0, 4, 3]
    model = _graph.GraphConvolutions(features=6, hidden=7, classes=2, dropout=0.5).eval()
    expected = dense @ (dense @ features @ model.first.weight.T + model.first.bias).relu() @ model.second.weight.T
    assert torch.allclose(model(part), (expected + model.bias)[nodes], atol=1e-6)


def test_no_symbol_sees_the_next(tasks: Mapping[str, Task]) -> None:
    model = tasks["shakespeare-gpt"].model()
    symbols = torch.randint(20, (1, 16))
    changed = symbols.clone()
    changed[0, 10:] = (symbols[0, 10:] + 1) % 20
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            before, after = model(symbols), model(changed)
        assert torch.allclose(before[0, :10], after[0, :10], atol=1e-5)
        assert not torch.allclose(before[0, 10], after[0, 10], atol=1e-2)


def test_the_words_before_each_target(tasks: Mapping[str, Task]) -> None:
    module = module_of("translation-lstm")
    english = torch.tensor([[1, 7, 8, 2, 0, 0], [1, 9, 2, 0, 0, 0]])
    spanish = torch.tensor([[1, 5, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    (source, previous), targets = module.Verses(spanish, english).take(torch.tensor([0, 1]))
    assert source.tolist() == [[1, 5, 2], [1, 2, 0]]
    assert previous.tolist() == [[1, 7, 8], [1, 9, 0]]
    assert targets.tolist() == [[7, 8, 2], [9, 2, 0]]


def test_attention_and_reading_ignore_padding(tasks: Mapping[str, Task]) -> None:
    model = tasks["translation-lstm"].model()
    spanish, previous = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([[1, 9, 8], [1, 4, 0]])
    padded = torch.nn.functional.pad(spanish, (0, 3)), torch.nn.functional.pad(previous, (0, 2))
    assert torch.allclose(model((spanish, previous)), model(padded), atol=1e-6)
    alone = model((spanish[1:, :3], previous[1:, :2]))
    assert torch.allclose(model((spanish, previous))[3:], alone, atol=1e-6)


def test_the_columns_of_the_census_share_no_embedding(tasks: Mapping[str, Task]) -> None:
    training, held_out = module_of("census-dlrm").rows()
    sizes = torch.arange(2, 35)
    ends = sizes.cumsum(0)
    for rows in (training, held_out):
        assert bool(((rows.codes >= ends - sizes) & (rows.codes < ends)).all())
        assert rows.numbers.shape == (300, 7)
