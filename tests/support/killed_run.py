"""A training run that is killed again and again; it is a script, so that torch is imported once for all its lives.

``python killed_run.py DIRECTORY OPTIMIZER ATTACHED SEED`` forks a child for each life and kills all but the last: after
some steps of its life and a random time, or, every fifth, in the middle of writing a checkpoint. It writes the last
states of the uninterrupted and of the killed run to ``reference`` and ``killed`` in the directory, and prints the step
at which each life began.
"""

import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import unscheduled

KILLS = 50
STEPS_OF_A_LIFE = 10  # at most
STEPS = STEPS_OF_A_LIFE * (KILLS + 1)
EVALUATE_EVERY = 3


class KillingFile(io.FileIO):
    """A file that kills its process in the middle of the first write."""

    def write(self, data: object) -> int:
        super().write(memoryview(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def dies_saving(life: int) -> bool:
    return life < KILLS and life % 5 == 0


def trained(
    name: str,
    attached: bool,
    directory: Path | None = None,
    life: int = 0,
    limit: int = STEPS,
    report: Callable[[int], object] = lambda _: None,
    steps: int = STEPS,
) -> tuple[nn.Module, unscheduled.ScheduleFreeOptimizer]:
    """Train to the end; with a directory, resume from it, evaluate and save at every step, and wait at the limit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
    if name == "ScheduleFreeWrapper":
        base = torch.optim.NAdam(model.parameters(), lr=0.01, weight_decay=0.01)
        optimizer: unscheduled.ScheduleFreeOptimizer = unscheduled.ScheduleFreeWrapper(base, warmup_steps=300)
    else:
        optimizer = getattr(unscheduled, name)(model.parameters(), lr=0.01, weight_decay=0.01, warmup_steps=300)
    if attached:
        optimizer.attach(model)

    def switch(training: bool) -> None:
        model.train(training)
        if not attached:
            optimizer.train(training)

    start, parent = 0, os.getppid()
    if directory and (directory / "checkpoint").exists():
        checkpoint = torch.load(directory / "checkpoint", weights_only=True)
        start = checkpoint["step"]
        both = [(model, checkpoint["model"]), (optimizer, checkpoint["optimizer"])]
        for each, state in both if life % 2 else reversed(both):
            each.load_state_dict(state)
        switch(True)
    for step in range(start + 1, steps + 1):
        report(step - 1)
        while step > limit and os.getppid() == parent:
            time.sleep(0.1)  # until it is killed
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=generator)).square().mean().backward()
        optimizer.step()
        if directory:
            if step % EVALUATE_EVERY == 0:
                switch(False)
                with torch.no_grad():
                    model(torch.ones(2, 5))
                switch(True)
            switch(step % 2 == 0)  # saved in either mode
            states = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            temporary = directory / f"{life}.temporary"
            kind = KillingFile if dies_saving(life) and step > limit - 3 else io.FileIO
            with kind(temporary, "wb") as file:
                torch.save(states, file)
            temporary.replace(directory / "checkpoint")
            switch(True)
    return model, optimizer


def forked(call: Callable[[], object]) -> int:
    """Fork a child that makes this call and exits, and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        call()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(directory: Path, name: str, attached: bool, seed: int) -> None:
    randomness = random.Random(seed)
    lives = directory / "lives"
    lives.mkdir()

    warm = directory / "warm"
    warm.mkdir()
    for steps in (3, 6):  # import here, once, everything that torch imports at its first use
        trained(name, attached, warm, steps=steps)

    def uninterrupted() -> None:
        end(*trained(name, attached), directory / "reference")

    def end(model: nn.Module, optimizer: unscheduled.ScheduleFreeOptimizer, file: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)

    assert os.waitpid(forked(uninterrupted), 0)[1] == 0
    starts: list[int] = []
    for life in range(KILLS + 1):
        reader, writer = os.pipe()

        def live(life: int = life, writer: int = writer) -> None:
            limit = STEPS_OF_A_LIFE * (life + 1)  # so that no life but the last reaches the end
            say = lambda step: os.write(writer, step.to_bytes(4, "big"))  # noqa: E731
            end(*trained(name, attached, lives, life, limit, say), directory / "killed")

        pid = forked(live)
        os.close(writer)
        wanted = 1 if life == KILLS or dies_saving(life) else 1 + randomness.randrange(STEPS_OF_A_LIFE)
        reports = [os.read(reader, 4) for _ in range(wanted)]
        if all(reports):
            starts.append(int.from_bytes(reports[0], "big"))
            if life < KILLS and not dies_saving(life):
                time.sleep(randomness.uniform(0.0, 0.005))
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        os.close(reader)
        expected = signal.SIGKILL if life < KILLS else 0
        assert status == expected, f"life {life}, which began at {starts[-1:]}, ended with status {status}"
    print(json.dumps({"starts": starts, "temporaries": len(list(lives.glob("*.temporary")))}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", int(sys.argv[4]))
