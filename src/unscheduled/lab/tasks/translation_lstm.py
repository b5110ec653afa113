"""translation-lstm: an LSTM with attention translates Spanish Bible verses into English: the paper's IWSLT14 in small.

Verses of at most 16 words on both sides; of each language the 996 most frequent words are known. Labels are smoothed
in training, and not where the model is judged.

The weight decay was chosen among 0.1, 0.3 and 0.6 for AdamW with cosine decay, seeds 2000 and 2001.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unscheduled.lab.data import load
from unscheduled.lab.task import OptimizerSettings, Task
from unscheduled.lab.tasks._checksum import data_sha256

PAD, UNKNOWN = 0, 3
VOCABULARY = 1000  # ids, which are in the order of frequency
LONGEST = 18  # words, with those that mark the start and the end
WIDTH = 64
BATCH_SIZE = 32
HELD_OUT = 400
LABEL_SMOOTHING = 0.1

Inputs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Verses:
    """Word ids (n, LONGEST) in both languages: the start, the words, the end, and padding."""

    spanish: Tensor
    english: Tensor

    def take(self, chosen: Tensor) -> tuple[Inputs, Tensor]:
        """The Spanish words and the English words before each target; and the targets: English words and the end.

        Each is cut to its longest verse.
        """
        spanish, english = (trimmed(verses[chosen]) for verses in (self.spanish, self.english))
        targets = english[:, 1:]
        return (spanish, english[:, :-1].masked_fill(targets == PAD, PAD)), targets


def lengths(verses: Tensor) -> Tensor:
    """How many words each has."""
    return (verses != PAD).sum(1)


def trimmed(verses: Tensor) -> Tensor:
    """Without the columns that are padding in all verses."""
    return verses[:, : int(lengths(verses).max())]


@functools.cache
def verses() -> tuple[Verses, Verses]:
    """For training, and held out; in an order shuffled once and for all."""
    data = load("bible-verses")
    both = [torch.as_tensor(data[language]).long() for language in ("spanish", "english")]
    short = torch.stack([lengths(verses) <= LONGEST for verses in both]).all(0)
    spanish, english = (verses[short, :LONGEST].where(verses[short, :LONGEST] < VOCABULARY, UNKNOWN) for verses in both)
    order = torch.randperm(len(spanish), generator=torch.Generator().manual_seed(0))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    return Verses(spanish[training], english[training]), Verses(spanish[held_out], english[held_out])


class Translator(nn.Module):
    """Inputs to the logits of the next word, of all words that are no padding (words, VOCABULARY).

    An LSTM reads the Spanish verse in both directions. A second one reads the English words so far and attends to the
    states of the first by dot products (Luong et al., 2015). A normalisation takes the place of their last tanh, which
    large learning rates saturate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spanish = nn.Embedding(VOCABULARY, WIDTH)
        self.english = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.combined = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.logits = nn.Linear(WIDTH, VOCABULARY)
        nn.init.normal_(self.spanish.weight, std=0.3)
        nn.init.normal_(self.english.weight, std=0.3)

    def forward(self, inputs: Inputs) -> Tensor:
        spanish, previous = inputs
        read, (state, cell) = self.encoder(
            pack_padded_sequence(self.spanish(spanish), lengths(spanish), batch_first=True, enforce_sorted=False)
        )
        source, _ = pad_packed_sequence(read, batch_first=True, total_length=spanish.shape[1])
        start = tuple(both.transpose(0, 1).reshape(1, -1, WIDTH) for both in (state, cell))
        hidden, _ = self.decoder(self.english(previous), start)
        scores = (hidden @ source.mT).masked_fill((spanish == PAD).unsqueeze(1), float("-inf"))
        context = scores.softmax(2) @ source
        words = torch.cat([hidden, context], 2)[previous != PAD]
        return self.logits(self.combined(words))


def batches(generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
    """Epoch after epoch of the training verses."""
    training, _ = verses()
    while True:
        for chosen in torch.split(torch.randperm(len(training.english), generator=generator), BATCH_SIZE):
            yield training.take(chosen)


def loss(model: nn.Module, batch: tuple[Inputs, Tensor]) -> Tensor:
    """The cross-entropy of the next word, with smoothed labels."""
    inputs, targets = batch
    return functional.cross_entropy(model(inputs), targets[targets != PAD], label_smoothing=LABEL_SMOOTHING)


def metric(model: nn.Module) -> Mapping[str, float]:
    """Over all words of the held-out verses, without smoothing."""
    _, held_out = verses()
    inputs, targets = held_out.take(torch.arange(len(held_out.english)))
    logits, words = model(inputs), targets[targets != PAD]
    correct = int((logits.argmax(1) == words).sum())
    return {"loss": functional.cross_entropy(logits, words).item(), "accuracy": 100 * correct / len(words)}


def facts() -> dict[str, Any]:
    """The size of the data and its checksum."""
    training, held_out = verses()
    sizes = {"training verses": len(training.english), "held-out verses": len(held_out.english)}
    return {**sizes, "data sha256": data_sha256("bible-verses")}


settings = OptimizerSettings((0.032, 0.064, 0.128), {"betas": (0.9, 0.99), "weight_decay": 0.3})
task = Task(
    summary="an LSTM with attention of 260,000 parameters translates Spanish Bible verses into English",
    model=Translator,
    batches=batches,
    loss=loss,
    metric=metric,
    metric_name="held-out loss (nats per word)",
    steps=500,
    warmup_steps=25,
    optimizers={
        "AdamW": settings,
        "AdamWScheduleFree": settings,
    },
    evaluations=14,
    seeds=5,
    facts=facts,
    data=("bible-verses",),
)
