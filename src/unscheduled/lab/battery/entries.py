"""The tasks of the battery, each with its contenders, in the order in which a budget of time is spent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unscheduled.lab.battery.ablations import BETAS, DEFAULT, VARIANTS, WITHOUT_BATCH_NORM, Variant

SCHEDULES = ("cosine", "linear", "step", "wsd")
FAMILY = ("polyak-ruppert", "primal", "river", "constant", "plus", "distance")
ADAMW = ("schedule-free", "schedule-free-r1", *SCHEDULES, *FAMILY)
MUON = (*ADAMW, "muon-r1", "amuse-slow", "muon-linear")
SGD = ("sgd", "sgd-r1", "sgd-cosine", "sgd-step")
LONG_CONTENDERS = ("schedule-free", "schedule-free-r1", "cosine", "linear")
CONVEX = ("schedule-free", "schedule-free-r1", "linear", "polyak-ruppert", "primal", "distance")


@dataclass(frozen=True)
class Entry:
    """A task of the battery.

    Args:
        task: the name of the task, or the path of a file that defines one.
        kind: the kind of problem, for the report.
        counterpart: the problem of the paper that it corresponds to, or "" if there is none.
        contenders: the names of the contenders; the first is compared with the others.
        length: the budget as a multiple of the task's number of steps.
        seeds: the number of seeds, or None for the task's number.
        ablated: whether the choices of Schedule-Free AdamW are varied on it.
    """

    task: str
    kind: str
    counterpart: str
    contenders: tuple[str, ...]
    length: int = 1
    seeds: int | None = None
    ablated: bool = False

    @property
    def name(self) -> str:
        """The task's name, with ``-long`` for a longer run of it."""
        name = Path(self.task).stem.replace("_", "-")
        return name if self.length == 1 else f"{name}-long"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants of Schedule-Free AdamW for the ablations of the task; in a long run β alone varies."""
        if self.length > 1:
            return (DEFAULT, *BETAS)
        return (*VARIANTS, WITHOUT_BATCH_NORM) if "BatchNorm" in self.kind else VARIANTS

    @property
    def shares_rates(self) -> bool:
        """Whether the task is part of the comparison of one learning rate for all tasks."""
        return self.kind != "convex" and self.length == 1

    def stated(self) -> dict[str, Any]:
        """The entry as a dictionary for the report."""
        return {"kind": self.kind, "counterpart": self.counterpart, "length": self.length}


DEEP = (
    Entry("char-lm", "transformer", "NanoGPT on OpenWebText", MUON, ablated=True),
    Entry("movielens", "recommender", "DLRM on Criteo", ADAMW, ablated=True),
    Entry("cora-gcn", "graph network", "OGBG (AlgoPerf)", ADAMW),
    Entry("mnist-cnn", "CNN", "CIFAR, SVHN", (*ADAMW, *SGD), ablated=True),
    Entry("translation-lstm", "RNN", "LSTM on IWSLT14", ADAMW),
    Entry("fashion-resnet", "CNN with BatchNorm", "ResNet-50 on ImageNet", (*ADAMW, *SGD), ablated=True),
    Entry("fashion-mae", "transformer", "fine-tuning of a masked autoencoder", MUON),
    Entry("fashion-unet", "image reconstruction", "VarNet on fastMRI", ADAMW),
    Entry("census-dlrm", "recommender", "DLRM on Criteo", ADAMW),
    Entry("pubmed-gcn", "graph network", "OGBG (AlgoPerf)", ADAMW),
    Entry("shakespeare-gpt", "transformer", "NanoGPT on OpenWebText", MUON),
    Entry("digits", "CNN with BatchNorm", "CIFAR, SVHN", ADAMW),
)
LONG = (
    Entry("mnist-cnn", "CNN", "CIFAR, SVHN", LONG_CONTENDERS, length=10, seeds=3, ablated=True),
    Entry(
        "shakespeare-gpt", "transformer", "NanoGPT on OpenWebText", LONG_CONTENDERS, length=10, seeds=3, ablated=True
    ),
)
"""Runs ten times as long as usual, to see whether a lead lasts and how the best β changes."""
CONVEX_SETS = ("glass", "iris", "letter", "pendigits", "vehicle", "vowel", "wine", "dna", "segment", "satimage")
ENTRIES = (
    *DEEP,
    *(Entry(f"logistic-{name}", "convex", f"logistic regression on {name}", CONVEX) for name in CONVEX_SETS),
    *LONG,
)


def entry_of(name: str) -> Entry | None:
    """The entry with this name, or a new entry for the path of a task file; None if the name is unknown."""
    if name.endswith(".py"):
        return Entry(name, "own", "", ADAMW)
    return next((entry for entry in ENTRIES if entry.name == name), None)


PAPER_CONVEX = {
    "glass": {"schedule-free": 72.1, "linear": 70.3, "polyak-ruppert": 68.8, "primal": 65.0},
    "iris": {"schedule-free": 98.6, "linear": 98.6, "polyak-ruppert": 98.3, "primal": 98.5},
    "letter": {"schedule-free": 77.8, "linear": 77.8, "polyak-ruppert": 77.8, "primal": 77.8},
    "pendigits": {"schedule-free": 96.0, "linear": 96.0, "polyak-ruppert": 95.8, "primal": 94.0},
    "vehicle": {"schedule-free": 83.4, "linear": 83.2, "polyak-ruppert": 80.8, "primal": 81.2},
    "vowel": {"schedule-free": 77.5, "linear": 77.6, "polyak-ruppert": 76.8, "primal": 77.2},
    "wine": {"schedule-free": 100.0, "linear": 100.0, "polyak-ruppert": 100.0, "primal": 100.0},
    "dna": {"schedule-free": 100.0, "linear": 100.0, "polyak-ruppert": 100.0, "primal": 100.0},
}
"""Training accuracy in per cent, from the figures of "The Road Less Scheduled", arXiv 2405.15682."""
