"""A training run that is killed again and again: a script, so that torch is imported once for all its lives.

``python killed_run.py DIRECTORY OPTIMIZER ATTACHED SEED`` forks a child for each life and kills all but the last. It
leaves in the directory ``reference`` and ``killed``, what the uninterrupted and the killed run ended with, and prints
how the killed one went.
"""

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
STEPS = 510
EVALUATE_EVERY = 3
SLEEP = 0.0005  # seconds a step


def trained(
    name: str,
    attached: bool,
    directory: Path | None = None,
    life: int = 0,
    limit: int = STEPS,
    begin: Callable[[int], object] = lambda _: None,
    steps: int = STEPS,
) -> tuple[nn.Module, unscheduled.ScheduleFreeOptimizer]:
    """Train to the end. With a directory: evaluate and save on the way, resume from there, and stop at the limit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
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
    begin(start)
    for step in range(start + 1, steps + 1):
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
            torch.save(states, temporary)
            temporary.replace(directory / "checkpoint")
            switch(True)
            time.sleep(SLEEP)
    return model, optimizer


def forked(call: Callable[[], object]) -> int:
    """The id of a child that makes this call and exits."""
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
    for steps in (3, 6):  # all that torch imports at its first use is imported here, once
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
            limit = STEPS * (life + 1) // (KILLS + 1)  # so that no life but the last reaches the end
            said = lambda start: os.write(writer, start.to_bytes(4))  # noqa: E731
            end(*trained(name, attached, lives, life, limit, said), directory / "killed")

        pid = forked(live)
        os.close(writer)
        said = os.read(reader, 4)
        os.close(reader)
        if said:
            starts.append(int.from_bytes(said))
            if life < KILLS:
                time.sleep(randomness.uniform(0.0, 0.05))
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        expected = signal.SIGKILL if life < KILLS else 0
        assert status == expected, f"life {life}, which began at {starts[-1:]}, ended with status {status}"
    print(json.dumps({"starts": starts, "temporaries": len(list(lives.glob("*.temporary")))}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", int(sys.argv[4]))
