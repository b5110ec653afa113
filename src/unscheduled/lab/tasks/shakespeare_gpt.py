"""shakespeare-gpt: a GPT learns to write Shakespeare's works, byte by byte: the paper's language model in small.

Embeddings start large enough that attention is learned within the budget. The weight decay was chosen among 0.03, 0.1
and 0.3 for AdamW with cosine decay, seeds 2000 and 2001; 0.03 and 0.1 were equal up to 0.001 nats.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._checksum import data_sha256

CONTEXT, WIDTH, HEADS, LAYERS = 32, 96, 4, 2
BATCH_SIZE = 8
STRETCH = 20_000  # bytes; every tenth stretch of the text is held out
VALIDATION_WINDOWS = 256


@dataclass(frozen=True)
class Texts:
    """Symbols from 0 to ``symbols`` - 1, one for each byte that occurs, for training and held out."""

    symbols: int
    training: Tensor
    held_out: Tensor


@functools.cache
def texts() -> Texts:
    """All works one after the other, of which every tenth stretch is held out."""
    alphabet, symbols = np.unique(load("shakespeare")["text"], return_inverse=True)
    stretches = torch.split(torch.as_tensor(symbols, dtype=torch.uint8), STRETCH)
    training = [stretch for index, stretch in enumerate(stretches) if index % 10 < 9]
    return Texts(len(alphabet), torch.cat(training), torch.cat(stretches[9::10]))


class GPT(nn.Module):
    """Symbols (batch, time) to the logits of the next symbol (batch, time, symbols).

    The blocks are those of torch: causal self-attention, then a two-layer perceptron, each normalised first and added
    to its input.
    """

    future: Tensor

    def __init__(self) -> None:
        super().__init__()
        symbols = texts().symbols
        self.symbol = nn.Embedding(symbols, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, symbols)
        nn.init.normal_(self.symbol.weight, std=0.3)
        nn.init.normal_(self.position.weight, std=0.3)
        self.register_buffer("future", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, symbols: Tensor) -> Tensor:
        time = symbols.shape[1]
        hidden = self.symbol(symbols) + self.position.weight[:time]
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.future[:time, :time], is_causal=True)
        return self.logits(self.norm(hidden))


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (len(starts), CONTEXT): the targets are the inputs one symbol further on."""
    symbols = text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)].long()
    return symbols[:, :-1], symbols[:, 1:]


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows anywhere in the training text."""
    training = texts().training
    while True:
        yield windows(training, torch.randint(len(training) - CONTEXT, (BATCH_SIZE,), generator=generator))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the next symbol."""
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def held_out_loss(model: nn.Module) -> float:
    """Over windows at equal distances in the held-out text."""
    held_out = texts().held_out
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, VALIDATION_WINDOWS).long()
    return loss(model, windows(held_out, starts)).item()


def facts() -> dict[str, Any]:
    """The size of the text and its checksum."""
    training, held_out = texts().training, texts().held_out
    sizes = {"training bytes": len(training), "held-out bytes": len(held_out)}
    return {**sizes, "data sha256": data_sha256("shakespeare")}


OPTIONS = {"betas": (0.9, 0.99), "weight_decay": 0.1}
task = Task(
    summary="a GPT of 243,000 parameters on Shakespeare's works, byte by byte",
    model=GPT,
    batches=batches,
    loss=loss,
    metric=held_out_loss,
    metric_name="held-out loss (nats per byte)",
    steps=1000,
    warmup_steps=50,
    optimizers={
        "AdamW": OptimizerSettings((0.004, 0.008, 0.016), OPTIONS),
        "AdamWScheduleFree": OptimizerSettings((0.008, 0.016, 0.032), OPTIONS),
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("shakespeare",),
)
