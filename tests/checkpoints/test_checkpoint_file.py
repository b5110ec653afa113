"""The commands ``unscheduled average`` and ``unscheduled inspect``, on the files that people have."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch
import torch.distributed.checkpoint as dcp
from commands import run
from problems import copies, equal, same
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, SGDScheduleFree, averaged_state_dict


class Net(nn.Module):
    """BatchNorm in the middle, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(inputs)))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4, dtype=next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def trained(attach: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Net, ScheduleFreeOptimizer]:
    model = Net().to(dtype)
    decay = [param for param in model.parameters() if param.dim() == 2]
    rest = [param for param in model.parameters() if param.dim() < 2]
    split = [{"params": decay, "weight_decay": 0.1}, {"params": rest}] if attach else model.parameters()
    optimizer = AdamWScheduleFree(split, lr=0.1)
    if attach:
        optimizer.attach(model)
    fit(model, optimizer)
    return model, optimizer


def average(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: Any) -> dict[str, torch.Tensor]:
    code, out, err = run(capsys, "average", *arguments, "-o", tmp_path / "x.safetensors")
    assert (code, err) == (0, "")
    assert "are the average x" in out
    assert [path.name for path in tmp_path.glob(".*")] == []
    return load_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_in_a_file(
    attach: bool, training: bool, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = trained(attach, dtype)
    x = averaged_state_dict(model, optimizer)
    (model if attach else optimizer).train(training)
    checkpoint = {
        "step": 5,
        "nested": [{"model": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}],
        "ema": {"decay": torch.tensor(0.9)},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.ckpt")
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.ckpt"), x)
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.ckpt")
    assert "optimizer        unscheduled" in out
    assert ("y, the gradient point" if training and not attach else "x, the average") in out
    assert f"  mode           {'train' if training and not attach else 'eval'}" in out
    assert "  steps          5\n" in out
    assert "  window 1/c     5 steps" in out


@pytest.mark.parametrize("names", [True, False])
def test_the_optimizer_in_a_file_of_its_own(names: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Net()
    optimizer = SGDScheduleFree(model.named_parameters() if names else model.parameters(), lr=0.1)
    fit(model, optimizer)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    found = average(capsys, tmp_path, tmp_path / "model.bin", "--optimizer", tmp_path / "optimizer.bin")
    x = {f"module.{name}": value for name, value in averaged_state_dict(model, optimizer).items()}
    assert same(found, x)


def test_the_names_of_an_attached_model_tell_weights_of_one_shape_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = SGDScheduleFree([*reversed(list(model.parameters()))], lr=0.1).attach(model)
    fit(model, optimizer)
    model.train()
    weights = copies(model.parameters())
    saved = {"model": dict(zip(model.state_dict(), weights, strict=True)), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")  # saved by hand at y
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), model.state_dict())


def test_a_folder_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = trained()
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    found = average(capsys, tmp_path, folder)
    assert same(found, model.state_dict())


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_dcp(flat: bool, attach: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = trained(attach)
    x = averaged_state_dict(model, optimizer)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=tmp_path / "dcp")
    assert same(average(capsys, tmp_path, tmp_path / "dcp"), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_a_file_of_schedulefree(training: bool, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Net()
    optimizer = getattr(schedulefree, name)(model.parameters(), lr=0.01)
    optimizer.train()
    fit(model, optimizer)
    (optimizer.train if training else optimizer.eval)()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    found = average(capsys, tmp_path, tmp_path / "checkpoint.pt")
    optimizer.eval()
    torch.testing.assert_close(found, dict(model.state_dict()), rtol=1e-5, atol=1e-6)
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.pt")
    assert "schedulefree" in out
    assert ("y, the gradient point" if training else "x, the average") in out


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Any, match: str) -> None:
    """One line says why, and nothing is written."""
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    code, out, err = run(capsys, "average", tmp_path / "checkpoint.pt", "-o", tmp_path / "x.pt")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert match in err
    assert not (tmp_path / "x.pt").exists()


def layers(seed: int = 0) -> nn.Sequential:
    """Three layers that nothing but their names and their order tells apart."""
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])


def saved(model: nn.Module, *optimizers: Any) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(model.state_dict()),  # where tied weights are tied
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def fit_both(model: nn.Module, *optimizers: Any) -> None:
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("modes", [(True, True), (True, False), (False, False)])
def test_several_optimizers_of_a_model(
    names: bool, modes: tuple[bool, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers()
    params: list[Any] = [*model.named_parameters()] if names else [*model.parameters()]
    optimizers = [SGDScheduleFree(params[:2], lr=0.1), AdamWScheduleFree(params[2:], lr=0.1)]
    fit_both(model, *optimizers)
    for optimizer, training in zip(optimizers, modes, strict=True):
        optimizer.train(training)
    torch.save(saved(model, *optimizers), tmp_path / "checkpoint.pt")
    found = average(capsys, tmp_path, tmp_path / "checkpoint.pt")
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.pt")
    for optimizer in optimizers:
        optimizer.eval()
    assert same(found, dict(model.state_dict()))
    assert out.count("optimizer        unscheduled") == 2
    assert "group 0          2 parameters" in out
    assert "group 0          1 parameters" in out
    held = {2: "y, the gradient point", 1: "x of some parameters, y of others", 0: "x, the average"}
    assert f"the weights are  {held[sum(modes)]}\n" in out


@pytest.mark.parametrize("names", [True, False])
def test_weights_of_another_optimizer_are_what_they_are(
    names: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers()
    params = list(model.parameters())
    plain = torch.optim.SGD(params[:1], lr=0.1)
    optimizer = AdamWScheduleFree([*model.named_parameters()][1:] if names else params[1:], lr=0.1)
    fit_both(model, plain, optimizer)
    torch.save(saved(model, plain, optimizer), tmp_path / "checkpoint.pt")
    found = average(capsys, tmp_path, tmp_path / "checkpoint.pt")
    optimizer.eval()
    assert same(found, dict(model.state_dict()))


def test_optimizers_of_the_same_names_are_not_taken_for_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two whole checkpoints in one file, or a pair of models."""
    checkpoints: list[Any] = []
    for seed in range(2):
        model = layers(seed)
        optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model)
        fit(model, optimizer)
        checkpoints.append(saved(model, optimizer))
    refused(capsys, tmp_path, checkpoints, "6 parameters without names of their own, which do not line up")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("apart", [1e-4, 0.1, 10.0])
def test_the_optimizer_tells_its_weights_from_others_of_their_form(
    training: bool, names: bool, apart: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exponential average of the weights, or those of the best step, saved before them."""
    model = Net()
    optimizer = AdamWScheduleFree(model.named_parameters() if names else model.parameters(), lr=0.1)
    fit(model, optimizer)
    optimizer.train(training)
    whole = saved(model, optimizer)
    other = copy.deepcopy(model.state_dict())
    for name, _ in model.named_parameters():
        other[name] += apart
    torch.save({"best": other, **whole}, tmp_path / "checkpoint.pt")
    x = averaged_state_dict(model, optimizer)
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), x)
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.pt")
    assert ("y, the gradient point" if training else "x, the average") in out


def test_of_weights_at_x_and_at_y_those_at_x_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The statistics of BatchNorm beside them are those of x."""
    model, optimizer = trained(attach=False)
    whole = saved(model, optimizer)
    model.norm.running_mean.add_(1.0)
    optimizer.eval()
    torch.save({**whole, "averaged": model.state_dict()}, tmp_path / "checkpoint.pt")
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), dict(model.state_dict()))


@pytest.mark.parametrize("prefix_of_weights", ["net.", "module.", "_orig_mod.", "a.b."])
def test_a_prefix_before_all_weights(
    prefix_of_weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Lightning and data parallelism put it there; other tensors may be without."""
    model, optimizer = trained()
    weights = {prefix_of_weights + name: value for name, value in model.state_dict().items()} | {
        "ema." + name: value + 1.0 for name, value in model.state_dict().items()
    }
    weights["loss.weight"] = torch.ones(3)
    torch.save({"state_dict": weights, "optimizer_states": [optimizer.state_dict()]}, tmp_path / "checkpoint.pt")
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), weights)


def test_a_prefix_before_all_names_of_the_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = layers()
    optimizer = AdamWScheduleFree([(f"model.{name}", param) for name, param in model.named_parameters()], lr=0.1)
    fit(model, optimizer)
    torch.save(saved(model, optimizer), tmp_path / "checkpoint.pt")
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), averaged_state_dict(model, optimizer))


def package(params: Any, **arguments: Any) -> Any:
    optimizer = schedulefree.AdamWScheduleFree(params, lr=0.1, **arguments)
    optimizer.train()
    return optimizer


def test_where_z_alone_is_kept_nothing_tells_several_sets_of_weights_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers()
    optimizer = package(model.parameters())
    fit(model, optimizer)
    whole = saved(model, optimizer)
    refused(capsys, tmp_path, {"ema": layers(1).state_dict(), **whole}, "2 sets of weights in it fit the optimizer")


def test_groups_in_another_order_need_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the last layer to the first, as for learning rates of their own."""
    model = layers()
    groups = [{"params": [param]} for param in model.parameters()][::-1]
    optimizer = package(groups)
    fit(model, optimizer)
    whole = saved(model, optimizer)
    refused(capsys, tmp_path, whole, "parameters of shape (4, 4) are in several groups, and without names")
    whole["optimizers"][0]["param_names"] = dict(enumerate(["2.weight", "1.weight", "0.weight"]))
    torch.save(whole, tmp_path / "checkpoint.pt")
    found = average(capsys, tmp_path, tmp_path / "checkpoint.pt")
    optimizer.eval()
    torch.testing.assert_close(found, dict(model.state_dict()), rtol=1e-5, atol=1e-6)
    torch.save(saved(model, optimizer), tmp_path / "checkpoint.pt")  # in eval mode they are what they are
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), dict(model.state_dict()))


def test_groups_in_another_order_show_in_the_gradient_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = layers()
    optimizer = AdamWScheduleFree([{"params": [param]} for param in model.parameters()][::-1], lr=0.1)
    fit(model, optimizer)
    refused(capsys, tmp_path, saved(model, optimizer), "is neither the x nor the y of the optimizer's state")


def test_an_average_that_cannot_be_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = layers()
    optimizer = package(model.parameters(), betas=(0.0, 0.99))
    fit(model, optimizer)
    refused(capsys, tmp_path, saved(model, optimizer), "beta = 0 in train mode: the average x cannot be recovered")
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.pt")
    assert "the weights are  y, the gradient point" in out
    assert "  beta           0\n" in out + "\n"


@pytest.mark.parametrize("make", [AdamWScheduleFree, package])
def test_an_average_that_is_not_finite_is_not_written(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers()
    optimizer = make(model.parameters())
    fit(model, optimizer)
    whole = saved(model, optimizer)
    state = whole["optimizers"][0]["state"][1]
    state["gap" if "gap" in state else "z"] = torch.full((4, 4), float("nan"))
    refused(capsys, tmp_path, whole, "the average of 1.weight is not finite, but the weights are")


def test_beta_0_of_ours_is_an_average_like_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = layers()
    optimizer = SGDScheduleFree(model.parameters(), lr=0.1, momentum=0.0)
    fit(model, optimizer)
    torch.save(saved(model, optimizer), tmp_path / "checkpoint.pt")
    assert same(average(capsys, tmp_path, tmp_path / "checkpoint.pt"), averaged_state_dict(model, optimizer))


def test_an_optimizer_that_is_not_schedule_free_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"ema": model.state_dict(), **saved(model, optimizer)}, tmp_path / "checkpoint.pt")
    _, out, _ = run(capsys, "inspect", tmp_path / "checkpoint.pt")
    assert "the weights are  what they are: the optimizer is not schedule-free" in out
    assert "group 0          3 parameters, lr 0.001" in out


def test_as_a_command(tmp_path: Path) -> None:
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    command = [sys.executable, "-m", "unscheduled"]
    subprocess.run([*command, "average", "checkpoint.pt", "-o", "x.pt"], cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert same(found, model.state_dict())
    assert equal(copies(Net().parameters()), Net().parameters()) is False
    Net().load_state_dict(found)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """As of ``unscheduled inspect checkpoint.pt | head -1``."""
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    command = [sys.executable, "-m", "unscheduled", "inspect", "checkpoint.pt"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def broken(folder: Path) -> dict[str, Path]:
    """Files that hold no checkpoint, by what the message about them says."""
    model, optimizer = trained()
    weights, state = model.state_dict(), optimizer.state_dict()
    torch.save({"model": weights, "optimizer": state}, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    files: dict[str, bytes | Any] = {
        "cannot be read": whole[: len(whole) // 2],
        "it is damaged or no checkpoint": b"",
        "tensors, numbers and strings": b"\x00\x01random" * 99,
        "objects than tensors": json.dumps({"model": 1}).encode(),
        "has no state of an optimizer": {"model": weights},
        "has no weights of a model": {"optimizer": state},
        "not schedule-free": {"model": weights, "optimizer": torch.optim.AdamW(model.parameters()).state_dict()},
        "which is not among the weights": {"model": {"other": torch.ones(1)}, "optimizer": state},
        "they are of different models": {
            "model": {name: torch.ones(3, 3) for name in weights},
            "optimizer": state,
        },
        "neither the x nor the y of the optimizer's state": {
            "model": {name: value + 1.0 for name, value in weights.items()},
            "optimizer": state,
        },
        "is damaged": {"model": weights, "optimizer": {**state, "state": 3}},
    }
    paths: dict[str, Path] = {}
    for number, (match, content) in enumerate(files.items()):
        paths[match] = folder / f"{number}.pt"
        if isinstance(content, bytes):
            paths[match].write_bytes(content)
        else:
            torch.save(content, paths[match])
    return paths | {"is not there": folder / "nowhere.pt", "is a folder without": folder}


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for match, path in broken(tmp_path).items():
        code, out, err = run(capsys, "average", path, "-o", tmp_path / "x.pt")
        assert (code, out) == (2, "")
        assert match in err
        assert err.startswith("unscheduled average: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "x.pt").exists()


def test_parameters_without_names_have_to_line_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = trained(attach=False)
    weights = {**model.state_dict(), "other": torch.ones(2)}
    torch.save({"model": weights, "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    code, _, err = run(capsys, "average", tmp_path / "checkpoint.pt", "-o", tmp_path / "x.pt")
    assert code == 2
    assert "5 parameters without names of their own, which do not line up with the 6 weights" in err


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ("x.onnx", "ends in .safetensors"),
        ("checkpoint.pt", "is the checkpoint itself"),
        ("no/x.pt", "there is no folder"),
    ],
)
def test_where_it_cannot_be_written(
    output: str, match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"precious")
    code, _, err = run(capsys, "average", tmp_path / "checkpoint.pt", "-o", tmp_path / output)
    assert code == 2
    assert match in err
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"precious"


def test_without_safetensors_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, _, err = run(capsys, "average", tmp_path / "checkpoint.pt", "-o", tmp_path / "x.safetensors")
    assert code == 2
    assert "pip install 'unscheduled[checkpoints]'" in err
