"""A graph convolutional network learns the classes of publications from their words and citations.

Two layers (Kipf and Welling, 2017): logits = S relu(S X W1 + b1) W2 + b2, where S = D^-1/2 (A + I) D^-1/2 is the
adjacency matrix A with self-loops, divided by the square roots of the degrees D of both ends. S X has no parameters and
is computed once. Every step takes all nodes for training.

The public splits of these graphs have 20 training nodes a class: there all rates that were tried overfit early, so
that the comparison would be one of regularisation. The nodes are split at random instead, with a fifth held out.
"""
# torch leaves some of its arguments without types:
# pyright: reportUnknownMemberType=false

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._checksum import data_sha256

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Part:
    """What is needed to classify m nodes of a graph: these nodes and their neighbours, k in all.

    Args:
        propagation: the rows of S of the m nodes and its columns of the k nodes, sparse (m, k).
        propagated: the rows of S X of the k nodes (k, d).
        labels: the classes of the m nodes (m,).
    """

    propagation: Tensor
    propagated: Tensor
    labels: Tensor


def propagation_of(edges: Tensor, nodes: int) -> Tensor:
    """S of undirected edges (2, E) that are given once each, sparse (nodes, nodes)."""
    itself = torch.arange(nodes).expand(2, nodes)
    both_ways = torch.cat([edges, edges.flip(0), itself], 1)
    scale = torch.bincount(both_ways[0], minlength=nodes).float().rsqrt()
    weights = scale[both_ways[0]] * scale[both_ways[1]]
    return sparse(both_ways, weights, (nodes, nodes))


def sparse(indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix with these values at these rows and columns (2, n)."""
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).coalesce()


def part_of(propagation: Tensor, propagated: Tensor, labels: Tensor, nodes: Tensor) -> Part:
    """What is needed to classify these nodes."""
    rows = propagation.index_select(0, nodes).coalesce()
    neighbours, columns = map(torch.as_tensor, np.unique(rows.indices()[1], return_inverse=True))
    own = sparse(torch.stack([rows.indices()[0], columns]), rows.values(), (len(nodes), len(neighbours)))
    return Part(own, propagated[neighbours], labels[nodes])


@functools.cache
def parts_of(name: str, training_share: float) -> tuple[Part, Part]:
    """For training, and held out: the classes of a random fifth of the nodes."""
    data = {key: torch.as_tensor(array) for key, array in load(name).items()}
    features = data["features"] / data["features"].sum(1, keepdim=True).clamp(min=1e-9)
    propagation = propagation_of(data["edges"], len(features))
    propagated = propagation @ features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    held_out = len(order) // 5
    nodes = order[held_out : held_out + round(training_share * len(order))], order[:held_out]
    training, judged = (part_of(propagation, propagated, data["labels"], each.sort().values) for each in nodes)
    return training, judged


class GraphConvolutions(nn.Module):
    """A part of a graph to the logits of its nodes (m, classes)."""

    def __init__(self, features: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, classes, bias=False)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, part: Part) -> Tensor:
        hidden = self.dropout(self.first(part.propagated).relu())
        return part.propagation @ self.second(hidden) + self.bias


def loss(model: nn.Module, part: Part) -> Tensor:
    """The cross-entropy of the class."""
    return functional.cross_entropy(model(part), part.labels)


def graph_task(
    name: str,
    steps: int,
    hidden: int,
    training_share: float,
    dropout: float,
    weight_decay: float,
    adamw: float,
    schedule_free: float,
) -> Task:
    """Node classification on a graph.

    Args:
        name: of the data set.
        steps: the budget.
        hidden: the width of the hidden layer.
        training_share: of all nodes.
        dropout: the share of hidden activations that are dropped.
        weight_decay: of both optimizers.
        adamw: the middle of the learning rates of AdamW; the others are half and twice of it.
        schedule_free: the middle of those of Schedule-Free AdamW.
    """

    def model() -> nn.Module:
        training, _ = parts_of(name, training_share)
        return GraphConvolutions(training.propagated.shape[1], hidden, int(training.labels.max()) + 1, dropout)

    def batches(generator: torch.Generator) -> Iterator[Part]:
        """All nodes for training, every time."""
        training, _ = parts_of(name, training_share)
        while True:
            yield training

    def metric(model: nn.Module) -> Mapping[str, float]:
        """Over all nodes that are held out."""
        _, held_out = parts_of(name, training_share)
        logits = model(held_out)
        correct = int((logits.argmax(1) == held_out.labels).sum())
        cross_entropy = functional.cross_entropy(logits, held_out.labels).item()
        return {"loss": cross_entropy, "accuracy": 100 * correct / len(held_out.labels)}

    def facts() -> dict[str, Any]:
        """How many nodes there are, and the checksum of the data."""
        training, held_out = parts_of(name, training_share)
        sizes = {"training nodes": len(training.labels), "held-out nodes": len(held_out.labels)}
        return {**sizes, "data sha256": data_sha256(name)}

    def settings(middle: float) -> OptimizerSettings:
        return OptimizerSettings((middle / 2, middle, 2 * middle), {"betas": BETAS, "weight_decay": weight_decay})

    return Task(
        summary=f"a graph convolutional network on {name}, all nodes at once",
        model=model,
        batches=batches,
        loss=loss,
        metric=metric,
        metric_name="held-out cross-entropy",
        steps=steps,
        warmup_steps=steps // 20,
        optimizers={"AdamW": settings(adamw), "AdamWScheduleFree": settings(schedule_free)},
        evaluations=14,
        seeds=5,
        facts=facts,
        data=(name,),
    )
