"""Which weights are where, whatever order people do things in: random lives of a run, against a record of them."""

import copy
import pickle
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as live
from problems import same, through_a_file
from torch import Tensor, nn
from torch.nn import Parameter

from unscheduled import (
    AdamWScheduleFree,
    ScheduleFreeOptimizer,
    ScheduleFreeWrapper,
    SGDScheduleFree,
    averaged_state_dict,
)
from unscheduled.state.buffers import wide
from unscheduled.state.split_weights import narrowed

SHAPES = {"matrix": (3, 50), "part.bias": (5,), "part.late": (4,)}
NAMES = tuple(SHAPES)
Weights = dict[str, Tensor]


@cache
def numbers(name: str, seed: int) -> Tensor:
    """Random ones, which bfloat16 has too."""
    generator = torch.Generator().manual_seed(1000 * seed + len(name))
    return torch.randn(SHAPES[name], generator=generator).bfloat16().float()


def fresh(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Parameter:
    return Parameter(numbers(name, seed).to(dtype, copy=True))


class Net(nn.Module):
    """Its gradients are the directions that it is called with, whatever the weights are."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.matrix, self.part = fresh("matrix", seed, dtype), nn.Module()
        self.part.bias, self.part.late = fresh("part.bias", seed, dtype), fresh("part.late", seed, dtype)

    def forward(self, directions: Weights) -> Tensor:
        return torch.stack([(p * directions[name].to(p.dtype)).sum() for name, p in self.named_parameters()]).sum()


class Case(NamedTuple):
    """An optimizer, and parameters for it."""

    make: Callable[[Iterable[Tensor]], ScheduleFreeOptimizer]
    dtype: torch.dtype = torch.float32


class Record:
    """The run as it is told: an optimizer over float32 weights that is never switched, saved, loaded or copied.

    Weights that take the place of x bring the y that is formed from them and the gap; but those that tell a y that is
    known bring that y.
    """

    def __init__(self, case: Case, history: Iterable[tuple[str, Any]] = ()) -> None:
        self.case = case
        self.weights = {name: fresh(name, 0) for name in NAMES}
        self.optimizer = case.make(self.weights.values())
        self.averages = {name: numbers(name, 0).double() for name in NAMES}  # x by its own recurrence
        self.history: list[tuple[str, Any]] = []
        self.written: Weights = {}  # as x, until the next step
        self.aside: Weights = {}  # the y from before weights were written in eval mode
        self.filed: Weights = {}  # the y that came with a file or a copy, until the next step
        for what, value in history:
            getattr(self, what)(value)

    def step(self, directions: Weights) -> None:
        for name, weight in self.weights.items():
            weight.grad = directions.get(name)
        self.optimizer.step()
        c = self.optimizer.param_groups[0]["c"]
        for name in directions:
            self.averages[name] += c * (self.optimizer.iterates(self.weights[name]).z - self.averages[name])
        self.written, self.filed = {}, {}
        self.history.append(("step", directions))

    def put(self, points: Weights) -> None:
        """Another y, with the z - x that there is."""
        for name, y in points.items():
            self.weights[name].data.copy_(y)
            self.averages[name] = (y - self.rest(name)).double()
        self.history.append(("put", points))

    def rest(self, name: str) -> Tensor:
        """y - x."""
        state = self.optimizer.state.get(self.weights[name])
        return (1 - 0.9) * wide(state, "gap") if state else torch.zeros(())

    def y(self) -> Weights:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def told(self, name: str, y: Tensor) -> Tensor:
        """The x that a y tells."""
        return narrowed(y - self.rest(name), self.case.dtype)

    def x(self) -> Weights:
        return {name: self.told(name, y) for name, y in self.y().items()} | self.written

    def write(self, averages: Weights, training: bool) -> None:
        """Weights that take the place of x."""
        x, y = self.x(), self.y()
        for name, weights in averages.items():
            if torch.equal(weights, x[name]):
                continue
            known = [self.aside.get(name, y[name]), *([self.filed[name]] if name in self.filed else [])]
            if not training:
                self.aside.setdefault(name, y[name])
            self.written.pop(name, None)
            for point in known:
                if torch.equal(weights, self.told(name, point)):
                    self.put({name: point})
                    break
            else:
                self.put({name: weights.float() + self.rest(name)})
                if self.weights[name] in self.optimizer.state:
                    self.written[name] = weights.clone()


class File(NamedTuple):
    """What was saved, and what the record was then."""

    weights: Weights
    state: dict[str, Any]
    history: list[tuple[str, Any]]
    written: Weights
    holds_average: bool


class Life(RuleBasedStateMachine):
    """What people do with a model and its optimizer."""

    case: ClassVar[Case]
    files = Bundle("files")

    @initialize(attached=st.booleans(), steps=st.integers(0, 3), watched=st.booleans())
    def born(self, attached: bool, steps: int, watched: bool) -> None:
        self.record, self.clock = Record(self.case), 0
        self.model = Net(self.case.dtype, 0)
        self.optimizer = self.case.make(self.model.parameters())
        self.flag, self.training, self.attached = True, True, False
        self.model.part.late.requires_grad_(False)
        self.watched = watched  # else what is put off until someone looks is put off until then
        if attached:
            self.attach()
        for _ in range(steps):
            self.step(closure=False)

    # What the record says.

    def held(self) -> Weights:
        if not self.training:
            return self.record.x()
        return {name: narrowed(y, self.case.dtype) for name, y in self.record.y().items()}

    def switched(self, training: bool) -> None:
        if training:
            self.record.aside = {}
        self.training = training

    def switch(self, training: bool) -> None:
        """By the model if it is attached, else by hand."""
        if self.attached:
            self.change_flag(training)
        else:
            self.switch_by_hand(training)

    # Training.

    def backward(self, seed: int) -> Weights:
        directions = {name: numbers(name, seed) for name in NAMES}
        self.model(directions).backward()
        return {name: directions[name] for name, param in self.model.named_parameters() if param.requires_grad}

    @rule(closure=st.booleans())
    def step(self, closure: bool) -> None:
        self.clock += 1
        if closure:
            found: list[Weights] = []

            def evaluated() -> None:
                self.optimizer.zero_grad()
                found.append(self.backward(self.clock))

            self.optimizer.step(evaluated)
            self.record.aside = {}
            self.record.step(found[0])
            return
        self.optimizer.zero_grad()
        directions = self.backward(self.clock)
        if not self.training:
            with pytest.raises(RuntimeError, match="step\\(\\) in eval mode"):
                self.optimizer.step()
            return
        if self.attached and not self.flag:
            with pytest.warns(UserWarning, match="in train mode while the attached model is in eval mode"):
                self.optimizer.step()
        else:
            self.optimizer.step()
        self.record.step(directions)

    @precondition(lambda self: not self.training)
    @rule()
    def step_on_gradients_at_the_average(self) -> None:
        self.optimizer.zero_grad()
        self.backward(self.clock)
        self.switch(False)  # should the flag be another
        self.switch(True)
        with pytest.raises(RuntimeError, match="taken in eval mode"):
            self.optimizer.step()

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @rule(name=st.sampled_from(NAMES[1:]), trained=st.booleans())
    def freeze_or_thaw(self, name: str, trained: bool) -> None:
        self.model.get_parameter(name).requires_grad_(trained)

    # Switching.

    @rule(count=st.integers(2, 4))
    def steps(self, count: int) -> None:
        self.switch(False)  # should the flag be another
        self.switch(True)
        for _ in range(count):
            self.step(closure=False)

    @rule(training=st.booleans())
    def change_flag(self, training: bool) -> None:
        assert self.model.train(training) is self.model
        if self.attached and training != self.flag:
            self.switched(training)
        self.flag = training

    @rule(training=st.booleans())
    def switch_by_hand(self, training: bool) -> None:
        self.optimizer.train(training)
        self.switched(training)

    @precondition(lambda self: not self.attached)
    @rule()
    def attach(self) -> None:
        self.optimizer.attach(self.model)
        self.attached = True
        self.switched(self.flag)

    @rule()
    def detach(self) -> None:
        self.optimizer.detach()
        self.attached = False

    @rule()
    def evaluate(self) -> None:
        directions = {name: numbers(name, 0) for name in NAMES}
        expected = Net(self.case.dtype, 0)
        expected.load_state_dict(self.record.x())
        with self.optimizer.averaged_parameters(), torch.no_grad():
            assert torch.equal(self.model(directions), expected(directions))
        if self.training:
            self.record.aside = {}

    # Looking at it.

    @rule()
    def look(self) -> None:
        x, y = self.record.x(), self.record.y()
        assert same(self.model.state_dict(), x if self.attached else self.held())
        assert same(averaged_state_dict(self.model, self.optimizer), x)
        part = {name: x[f"part.{name}"] for name in ("bias", "late")}
        assert not self.attached or same(self.model.part.state_dict(), part)
        for name, param in self.model.named_parameters():
            found = self.optimizer.iterates(param)
            assert torch.equal(found.y, y[name])
            rest = self.record.rest(name)
            torch.testing.assert_close(found.z - found.x, rest.expand_as(y[name]) / (1 - 0.9), rtol=1e-4, atol=1e-5)
            assert torch.equal(narrowed(found.x, self.case.dtype), x[name])

    @rule(pickled=st.booleans())
    def copy_of_the_model(self, pickled: bool) -> None:
        copied = pickle.loads(pickle.dumps(self.model)) if pickled else copy.deepcopy(self.model)
        assert type(copied) is Net
        assert same(dict(copied.named_parameters()), self.record.x() if self.attached else self.held())
        assert copied.training is self.flag

    # Files and copies.

    @rule(target=files)
    def save(self) -> File:
        weights, state = through_a_file(self.model.state_dict()), through_a_file(self.optimizer.state_dict())
        holds_average = self.attached or not self.training
        written = self.record.written if holds_average else {}
        return File(weights, state, list(self.record.history), dict(written), holds_average)

    @rule(
        file=files,
        model_first=st.booleans(),
        switches=st.tuples(*[st.sampled_from([None, True, False])] * 2),
        looks=st.booleans(),
        into=st.sampled_from([None, "attach before", "attach after", "never attach"]),
        flag=st.booleans(),
    )
    def load(
        self,
        file: File,
        model_first: bool,
        switches: tuple[bool | None, bool | None],
        looks: bool,
        into: str | None,
        flag: bool,
    ) -> None:
        if into:
            trained = [param.requires_grad for param in self.model.parameters()]
            self.model = Net(self.case.dtype, 7)
            for param, requires_grad in zip(self.model.parameters(), trained, strict=True):
                param.requires_grad_(requires_grad)
            self.optimizer = self.case.make(self.model.parameters())
            self.attached, self.flag, self.training = False, True, True
            self.change_flag(flag)
            if into == "attach before":
                self.attach()
        if switches[0] is not None:
            self.switch(switches[0])
        for load_model in (model_first, not model_first):
            if load_model:
                self.model.load_state_dict(file.weights)
            else:
                self.optimizer.load_state_dict(file.state)
            if looks:
                self.model.state_dict()
            if switches[1] is not None and load_model is model_first:
                self.switch(switches[1])
        self.record = Record(self.case, file.history)
        self.record.written, self.record.filed = dict(file.written), self.record.y()
        if into == "attach after":
            self.attach()
        elif self.attached:
            self.training = self.flag
        else:
            self.switch_by_hand(flag)

    @rule(source=st.sampled_from(["new", "own", "told"]), only_part=st.booleans(), by_hand=st.booleans())
    def write(self, source: str, only_part: bool, by_hand: bool) -> None:
        self.clock += 1
        weights = {
            "own": self.record.x(),
            "told": {name: self.record.told(name, y) for name, y in self.record.y().items()},
            "new": {name: numbers(name, self.clock).to(self.case.dtype) for name in NAMES},
        }[source]
        self.bring({name: weights[name] for name in NAMES[only_part:]}, by_hand)

    @rule(file=files.filter(lambda file: file.holds_average))
    def load_the_weights_alone(self, file: File) -> None:
        self.bring(file.weights, by_hand=False)

    def bring(self, weights: Weights, by_hand: bool) -> None:
        if self.training and not self.attached:
            self.attach()  # else they would be y
        if by_hand and not self.training:
            for name, value in weights.items():
                self.model.get_parameter(name).data.copy_(value)
        elif len(weights) < len(NAMES):
            self.model.part.load_state_dict({name.removeprefix("part."): value for name, value in weights.items()})
        else:
            self.model.load_state_dict(weights)
        self.record.write(weights, self.training)

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.model, self.optimizer = copy.deepcopy((self.model, self.optimizer))
        if self.attached:
            self.attached = False
            self.record.aside, self.record.filed = {}, self.record.y()
            self.attach()

    # Whatever was done.

    @invariant()
    def the_parameters_hold_what_the_mode_says(self) -> None:
        assert self.optimizer.training is self.training
        assert all(group["training"] is self.training for group in self.optimizer.param_groups)
        assert self.model.training is self.flag
        assert same({name: param.detach() for name, param in self.model.named_parameters()}, self.held())

    @invariant()
    def the_average_is_there_to_look_at(self) -> None:
        if self.watched:
            self.look()

    @invariant()
    def the_average_is_that_of_the_recurrence(self) -> None:
        if self.record.optimizer.state_precision == "float32":
            for name, x in self.record.averages.items():
                told = (self.record.weights[name] - self.record.rest(name)).detach().double()
                torch.testing.assert_close(told, x, rtol=1e-5, atol=1e-5)


def nadam(params: Iterable[Tensor]) -> ScheduleFreeOptimizer:
    return ScheduleFreeWrapper(torch.optim.NAdam(list(params), lr=0.1))


CASES = {
    "AdamW": Case(lambda params: AdamWScheduleFree(params, lr=0.1)),
    "AdamW, bfloat16": Case(lambda params: AdamWScheduleFree(params, lr=0.1), torch.bfloat16),
    "AdamW, compact, bfloat16": Case(
        lambda params: AdamWScheduleFree(params, lr=0.1, state_precision="compact"), torch.bfloat16
    ),
    "SGD": Case(lambda params: SGDScheduleFree(params, lr=0.3)),
    "NAdam": Case(nadam),
    "NAdam, bfloat16": Case(nadam, torch.bfloat16),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def lives(case: Case, count: int, steps: int, **options: Any) -> None:
    checks = list(HealthCheck)
    phases = [Phase.generate, Phase.shrink]
    some = settings(max_examples=count, stateful_step_count=steps, suppress_health_check=checks, phases=phases)
    live(type("Life", (Life,), {"case": case}), settings=settings(some, report_multiple_bugs=False, **options))


@cases
def test_short_lives(case: Case) -> None:
    lives(case, 50, 30, derandomize=True, database=None)


@pytest.mark.slow
@cases
def test_long_lives(case: Case) -> None:
    lives(case, 170, 40, derandomize=True, database=None)
