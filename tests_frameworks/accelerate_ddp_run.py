"""What each process of the test of Accelerate's DDP runs: ``torchrun accelerate_ddp_run.py FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
import transformers_problem
from accelerate import Accelerator
from accelerate_problem import MICRO, STEPS, adamw, fit, plain_loop, prepared
from problems import same
from small_problem import averages, holds
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback
from transformers_problem import make_model, make_trainer

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
    optimizers = [transformers_problem.adamw(model).attach(model) for model in models]
    often, never, resumed = models
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    options |= {"per_device_train_batch_size": 2, "train_sampling_strategy": "random"}
    seen = Averages()
    evaluating = options | {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(folder, often, optimizers[0], callbacks=[seen], **evaluating)
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    make_trainer(folder / "never", never, optimizers[1], **options).train()
    assert holds(often.train(), never)
    assert_same_everywhere(never)
    assert_same_everywhere(often.eval())
    for step in (3, 6, 9, transformers_problem.STEPS):
        file = safetensors.torch.load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert same(file, seen.found[step])
    trainer = make_trainer(folder / "resumed", resumed, optimizers[2], **options)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert holds(resumed, never)
    assert same(optimizers[2].state_dict(), optimizers[0].state_dict())


def loop(folder: Path, attach: str) -> None:
    """A loop with Accelerate, resumed and not, with evaluations on one process alone, is that of one process."""
    reference, plain = plain_loop(adamw, parts=dist.get_world_size())
    for first in (0, 3):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO)
        model, optimizer = prepared(accelerator, adamw, attach)
        assert isinstance(model, DistributedDataParallel)
        if first:
            accelerator.load_state(str(folder))
        for step in range(first, STEPS):
            if step == 3 and not first:
                accelerator.save_state(str(folder))
            fit(accelerator, model.train(), optimizer, [step], part=dist.get_rank())
            if accelerator.is_main_process:
                model.eval()
                model.train()
        inner = accelerator.unwrap_model(model)
        model.train()
        assert holds(inner, reference)
        model.eval()
        assert holds(inner, averages(reference, plain))


if __name__ == "__main__":
    trainer(Path(sys.argv[1]) / "trainer")
    for attach in ("before", "after"):
        loop(Path(sys.argv[1]) / attach, attach)
