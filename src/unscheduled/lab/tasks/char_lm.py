"""char-lm: a small GPT learns to write the source code of Python's standard library, character by character."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unscheduled.lab.task import OptimizerSettings, Task

CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 4, 2
BATCH_SIZE = 16
VALIDATION_WINDOWS = 512

ALPHABET = bytes(range(32, 127)) + b"\n"  # printable ASCII; whatever else becomes one more symbol
SYMBOLS = len(ALPHABET) + 1
ENCODING = bytes(ALPHABET.index(byte) if byte in ALPHABET else SYMBOLS - 1 for byte in range(256))


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.perceptron_norm = nn.LayerNorm(WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attention.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.perceptron_norm(x))


class GPT(nn.Module):
    """Symbols (batch, time) to the logits of the next symbol (batch, time, symbol)."""

    def __init__(self) -> None:
        super().__init__()
        self.symbol = nn.Embedding(SYMBOLS, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, SYMBOLS)
        nn.init.normal_(self.symbol.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.logits(self.norm(self.blocks(self.symbol(symbols) + self.position.weight[: symbols.shape[1]])))


@functools.cache
def texts() -> tuple[Tensor, Tensor]:
    """The top-level modules of the standard library, as symbols: for training, and every tenth of them held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    if len(files) < 20:
        raise FileNotFoundError("this Python comes without the source of its standard library")
    held_out = files[::10]
    training = [file for file in files if file not in held_out]
    return encode(training), encode(held_out)


def encode(files: list[Path]) -> Tensor:
    """The files one after the other, as symbols."""
    text = b"\n".join(file.read_bytes().replace(b"\r\n", b"\n") for file in files)
    return torch.frombuffer(bytearray(text.translate(ENCODING)), dtype=torch.uint8)


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (len(starts), CONTEXT): the targets are the inputs one symbol further on."""
    symbols = text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)].long()
    return symbols[:, :-1], symbols[:, 1:]


def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows anywhere in the training text."""
    training, _ = texts()
    while True:
        yield windows(training, torch.randint(len(training) - CONTEXT, (BATCH_SIZE,), generator=generator))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross-entropy of the next symbol."""
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def validation_loss(model: nn.Module) -> float:
    """Over windows at equal distances in the held-out text."""
    _, held_out = texts()
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, VALIDATION_WINDOWS).long()
    chunks = [loss(model, windows(held_out, chunk)) for chunk in starts.chunk(8)]
    return torch.stack(chunks).mean().item()


def facts() -> dict[str, Any]:
    """The text differs between versions of Python, and with it the losses."""
    training, held_out = texts()
    sha256 = hashlib.sha256(training.numpy().tobytes() + held_out.numpy().tobytes()).hexdigest()
    return {"training characters": len(training), "held-out characters": len(held_out), "text sha256": sha256}


BETAS = (0.9, 0.99)
settings = OptimizerSettings((0.004, 0.008, 0.016), {"betas": BETAS, "weight_decay": 0.01})
task = Task(
    summary="a GPT of 114,000 parameters on the source of Python's standard library, character by character",
    model=GPT,
    batches=batches,
    loss=loss,
    metric=validation_loss,
    metric_name="validation loss (nats per character)",
    steps=1000,
    warmup_steps=50,
    optimizers={
        "AdamW": settings,
        "AdamWScheduleFree": settings,
        "SGDScheduleFree": OptimizerSettings((0.5, 1.0, 2.0)),
        "LionScheduleFree": OptimizerSettings((0.002, 0.004, 0.008), {"betas": BETAS, "weight_decay": 0.05}),
    },
    evaluations=14,
    seeds=5,
    facts=facts,
)
