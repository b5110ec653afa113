"""Files of every format load in this version, bit for bit; a file may lack what its version did not have."""

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from make_state_files import DTYPES, FOLDER, OF_ALL_FORMATS, SUBJECTS, Net, saved, storage_of, train
from problems import equal, make_params
from problems import train as train_on
from registry import OptimizerInfo, optimizers
from torch import nn

from unscheduled import AdamWScheduleFree, ExponentialAveraging, RAdamScheduleFree, ScheduleFreePlus, SGDScheduleFree
from unscheduled.checkpoints.optimizer_state import FORMER as COUNTERS_OF_FORMER_VERSIONS
from unscheduled.cli import main
from unscheduled.state.buffers import with_whole_y

FORMER = {*COUNTERS_OF_FORMER_VERSIONS}
FORMATS = sorted(folder.name for folder in FOLDER.iterdir())
FILES = sorted((file.parent.name, file.stem) for file in FOLDER.glob("*/*.pt"))
CASES_OF_FILES = [(number, name, case) for number, name in FILES for case in SUBJECTS[name].cases]


def read(number: str, name: str) -> dict[str, Any]:
    return torch.load(FOLDER / number / f"{name}.pt", weights_only=True)


def test_there_is_a_file_of_the_present_format_for_every_optimizer() -> None:
    optimizer = SGDScheduleFree(make_params())
    assert str(optimizer.state_dict()["version"]) == FORMATS[-1]
    for number in FORMATS:
        assert OF_ALL_FORMATS <= {file.stem for file in (FOLDER / number).iterdir()} <= set(SUBJECTS)


@pytest.mark.covering(2)
@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize(("number", "name", "case"), CASES_OF_FILES)
def test_a_file_loads_bit_for_bit(number: str, name: str, case: str, model_first: bool) -> None:
    file = read(number, name)[case]
    model = Net(DTYPES[case.partition(" ")[0]], seed=7)
    optimizer = SUBJECTS[name].load(model.parameters(), **storage_of(case))
    if "attached" in case:
        optimizer.attach(model)
    for load_model in (model_first, not model_first):
        (model if load_model else optimizer).load_state_dict(file["model" if load_model else "optimizer"])
    for param_name, param in model.named_parameters():
        assert equal(optimizer.iterates(param), file["iterates"][param_name])
    again = optimizer.state_dict()
    for key, state in file["optimizer"]["state"].items():
        loaded, state = with_whole_y(again["state"][key]), with_whole_y(state)
        assert set(loaded) == set(state)
        buffers = [entry for entry in state if isinstance(state[entry], torch.Tensor)]
        assert all(torch.equal(loaded[entry], state[entry]) for entry in buffers)
    for group, its_file in zip(again["param_groups"], file["optimizer"]["param_groups"], strict=True):
        assert {entry: group.get(entry) for entry in its_file} == its_file | dict.fromkeys(FORMER & its_file.keys())
    train(model, optimizer.train(), range(5, 6))


@pytest.mark.covering(1)
@pytest.mark.parametrize(("number", "name", "case"), CASES_OF_FILES)
def test_the_commands_read_the_files(
    number: str, name: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = read(number, name)[case]
    torch.save(file, tmp_path / "file.pt")
    with pytest.raises(SystemExit) as ended:
        main(["average", str(tmp_path / "file.pt"), "-o", str(tmp_path / "average.pt")])
    assert ended.value.code == 0, capsys.readouterr()
    found = torch.load(tmp_path / "average.pt", weights_only=True)
    for param_name, (x, _, _) in file["iterates"].items():
        assert torch.equal(found[param_name], x.to(found[param_name].dtype))


@pytest.mark.parametrize("name", [name for number, name in FILES if number == FORMATS[-1]])
def test_a_run_that_is_made_now_is_saved_as_in_the_file_of_its_format(name: str) -> None:
    """Else the format has changed, and needs another number and another file."""
    newer = {"decoupled_weight_decay"} - torch.optim.AdamW(make_params()).defaults.keys()  # options of the wrapped base
    for case, file in read(FORMATS[-1], name).items():
        now = saved(SUBJECTS[name], case)["optimizer"]
        for group in file["optimizer"]["param_groups"]:
            for option in newer & group.get("base", {}).keys():
                del group["base"][option]
        assert form(now) == form(file["optimizer"])


def form(value: Any) -> Any:
    """What kinds of things are where."""
    if isinstance(value, dict):
        return {key: form(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    return [form(entry) for entry in value] if isinstance(value, (list, tuple)) else type(value)


# What a file lacks, and what is unknown in it.


def run_of(info: OptimizerInfo, **arguments: Any) -> tuple[list[nn.Parameter], Any, dict[str, Any]]:
    """A run, and its state in a file of its own."""
    params = make_params()
    optimizer = info.make(params, **arguments)
    train_on(optimizer, range(3))
    return params, optimizer, copy.deepcopy(optimizer.state_dict())


NEEDED = {"params", "averaging", "step", "lr", "weight_sum", "lr_max", "beta", "base"}


@optimizers
def test_each_option_that_a_file_lacks_takes_its_default(info: OptimizerInfo) -> None:
    params, optimizer, whole = run_of(info)
    for name in whole["param_groups"][0].keys() - NEEDED:
        state = copy.deepcopy(whole)
        del state["param_groups"][0][name]
        others = [nn.Parameter(param.detach().clone()) for param in params]
        resumed = info.make(others)
        resumed.load_state_dict(state)
        fresh = info.make(make_params()).param_groups[0]
        given = resumed.param_groups[0]
        assert given[name] == (whole["param_groups"][0][name] if name == "training" else fresh[name])
        kept = given.keys() - {"params", name}
        assert {key: given[key] for key in kept} == {key: optimizer.param_groups[0][key] for key in kept}


def test_a_default_is_that_of_the_class_and_not_of_the_optimizer_that_loads() -> None:
    """The run of an older version was one without the option."""
    state = copy.deepcopy(AdamWScheduleFree(make_params()).state_dict())
    for name in ("corrected_decay", "inner_momentum", "warmup_steps"):
        del state["param_groups"][0][name]
    other = AdamWScheduleFree(make_params(), corrected_decay=True, inner_momentum=0.9, warmup_steps=7)
    other.load_state_dict(state)
    group = other.param_groups[0]
    assert (group["corrected_decay"], group["inner_momentum"], group["warmup_steps"]) == (False, 0.0, 0)
    plus = ScheduleFreePlus(make_params())
    state = copy.deepcopy(plus.state_dict())
    del state["param_groups"][0]["corrected_decay"]
    plus.load_state_dict(state)
    assert plus.param_groups[0]["corrected_decay"] is True


@pytest.mark.parametrize("axis", ["averaging", "interpolation", "step_size"])
def test_fields_and_axes_that_a_file_lacks_take_their_defaults(axis: str) -> None:
    optimizer = AdamWScheduleFree(make_params())
    whole = copy.deepcopy(optimizer.state_dict())
    for name in whole["param_groups"][0][axis]["arguments"]:
        state = copy.deepcopy(whole)
        del state["param_groups"][0][axis]["arguments"][name]
        other = AdamWScheduleFree(make_params())
        other.load_state_dict(state)
        assert other.param_groups[0][axis] == optimizer.param_groups[0][axis]
    if axis != "averaging":
        del whole["param_groups"][0][axis]
        optimizer.load_state_dict(whole)


def test_a_field_without_a_default_is_needed() -> None:
    optimizer = AdamWScheduleFree(make_params(), averaging=ExponentialAveraging(0.1))
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["averaging"]["arguments"]["c"]
    with pytest.raises(ValueError, match=r"made with averaging = ExponentialAveraging\(\), this optimizer has"):
        optimizer.load_state_dict(state)


@pytest.mark.covering(1)
@optimizers
@pytest.mark.parametrize(("value", "refused"), [(3, True), (0.0, True), ("z", True), (None, False), (False, False)])
def test_unknown_options_and_fields_are_refused_by_name_unless_they_are_off(
    info: OptimizerInfo, value: Any, refused: bool
) -> None:
    """As of a version to come, with one more option or one more field of the averaging."""
    params, optimizer, whole = run_of(info)
    option, axis = copy.deepcopy(whole), copy.deepcopy(whole)
    option["param_groups"][0]["lookahead"] = value
    axis["param_groups"][0]["averaging"]["arguments"]["window"] = value
    for state, name in ((option, "lookahead"), (axis, "window")):
        before = [param.detach().clone() for param in params], str(optimizer.state_dict())
        if refused:
            with pytest.raises(ValueError, match=f"parameter group 0: .*{name}"):
                optimizer.load_state_dict(state)
            assert equal(params, before[0])
            assert str(optimizer.state_dict()) == before[1]
        else:
            optimizer.load_state_dict(state)
            assert name not in optimizer.param_groups[0]
            train_on(optimizer, [3])


def test_an_option_of_another_optimizer_is_never_off() -> None:
    """RAdam without its silent phase is still no AdamW."""
    state = RAdamScheduleFree(make_params(), silent_sgd_phase=False).state_dict()
    with pytest.raises(ValueError, match="silent_sgd_phase = False is unknown here"):
        AdamWScheduleFree(make_params()).load_state_dict(state)


@pytest.mark.parametrize("name", ["initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"])
def test_what_schedulers_keep_is_loaded_without_a_scheduler(name: str) -> None:
    state = copy.deepcopy(SGDScheduleFree(make_params()).state_dict())
    state["param_groups"][0][name] = 0.5
    other = SGDScheduleFree(make_params())
    other.load_state_dict(state)
    assert other.param_groups[0][name] == 0.5


@pytest.mark.parametrize("version", [-1, "1", 1.0, None])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    state = SGDScheduleFree(make_params()).state_dict() | {"version": version}
    with pytest.raises(ValueError, match="its version is"):
        SGDScheduleFree(make_params()).load_state_dict(state)


def test_a_later_version_loads_if_all_in_it_is_known() -> None:
    state = SGDScheduleFree(make_params()).state_dict() | {"version": 999}
    SGDScheduleFree(make_params()).load_state_dict(state)


def test_version_and_names_stand_beside_the_groups() -> None:
    model = nn.Linear(2, 1)
    state = SGDScheduleFree(model.named_parameters()).state_dict()
    assert list(state) == ["state", "param_groups", "version", "param_names"]


@dataclasses.dataclass(frozen=True)
class Window:
    """An averaging of one's own, with a field that it did not always have."""

    length: int
    offset: int = 0

    def __call__(self, step: int, lr: float, lr_max: float, weight_sum: float) -> tuple[float, float]:
        return max(1.0 / step, 1.0 / (self.length + self.offset)), weight_sum


def test_an_averaging_of_ones_own_may_gain_fields() -> None:
    optimizer = SGDScheduleFree(make_params(), averaging=Window(4, 5))
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["averaging"]["arguments"]["offset"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["averaging"] == Window(4, 0)


def test_a_file_of_16_bits_without_a_rest_or_with_another_is_refused() -> None:
    params = make_params(dtype=torch.bfloat16)
    optimizer = AdamWScheduleFree(params)
    train_on(optimizer, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    for change in ({"low": torch.zeros(3, 3)}, {"y": torch.zeros_like(params[0], dtype=torch.float32)}):
        file.seek(0)
        state = torch.load(file, weights_only=True)
        state["state"][0].update(change)
        with pytest.raises(ValueError, match="'low'"):
            optimizer.load_state_dict(state)
