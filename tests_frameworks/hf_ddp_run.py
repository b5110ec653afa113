"""What each process of the test of several processes runs: ``python hf_ddp_run.py FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import test_accelerate
import torch
import torch.distributed as dist
from accelerate import Accelerator
from sameness import equal, same
from test_transformers import STEPS, adamw, make_model, make_trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from unscheduled import ScheduleFreeOptimizer


def assert_same_everywhere(model: torch.nn.Module) -> None:
    for param in model.parameters():
        others = [torch.empty_like(param) for _ in range(dist.get_world_size())]
        dist.all_gather(others, param.detach())
        assert all(torch.equal(param, other) for other in others)


class Averages(TrainerCallback):
    """Keeps x as it is when a checkpoint is written."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, Tensor]] = {}

    def on_save(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
        inner: ScheduleFreeOptimizer = optimizer.optimizer
        self.found[state.global_step] = {name: inner.iterates(param).x for name, param in model.named_parameters()}


def trainer(folder: Path) -> None:
    """Evaluated or not, resumed or not, the bits are the same; checkpoints have x of their step."""
    models = [make_model() for _ in range(3)]
    optimizers = [adamw(model).attach(model) for model in models]
    often, never, resumed = models
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    options |= {"per_device_train_batch_size": 2, "train_sampling_strategy": "random"}
    averages = Averages()
    evaluating = options | {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(folder, often, optimizers[0], callbacks=[averages], **evaluating)
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    make_trainer(folder / "never", never, optimizers[1], **options).train()
    assert equal(often.train(), never)
    assert_same_everywhere(never)
    assert_same_everywhere(often.eval())
    for step in (3, 6, 9, STEPS):
        file = safetensors.torch.load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert same(file, averages.found[step])
    trainer = make_trainer(folder / "resumed", resumed, optimizers[2], **options)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert equal(resumed, never)
    assert same(optimizers[2].state_dict(), optimizers[0].state_dict())


def loop(folder: Path, attach: str) -> None:
    """A loop with Accelerate, resumed and not, with evaluations on one process alone."""
    ends = []
    for first in (0, 3):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=test_accelerate.MICRO)
        model, optimizer = test_accelerate.prepared(accelerator, test_accelerate.adamw, attach)
        assert isinstance(model, DistributedDataParallel)
        if first:
            accelerator.load_state(str(folder))
        for step in range(first, test_accelerate.STEPS):
            if step == 3 and not first:
                accelerator.save_state(str(folder))
            test_accelerate.fit(accelerator, model.train(), optimizer, range(step, step + 1))
            if accelerator.is_main_process:
                model.eval()
                model.train()
        ends.append(model)
        assert_same_everywhere(model.train())
        assert_same_everywhere(model.eval())
        inner = accelerator.unwrap_model(model)
        assert test_accelerate.equal(inner, test_accelerate.averages(inner, optimizer.optimizer))
    assert equal(*(each.train() for each in ends))


if __name__ == "__main__":
    trainer(Path(sys.argv[1]) / "trainer")
    for attach in ("before", "after"):
        loop(Path(sys.argv[1]) / attach, attach)
