"""The one shell round every Schedule-Free algorithm: groups, state, step, train and eval."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from unscheduled import kernels
from unscheduled.kernels import Implementation, untraced
from unscheduled.kernels.batch import KnownStates
from unscheduled.optimizer import capture, collectives
from unscheduled.optimizer.planning import NORM_AVERAGE
from unscheduled.optimizer.polyak import Loss, Number
from unscheduled.optimizer.stepping import SteppingOptimizer
from unscheduled.state import memory, param_groups
from unscheduled.state.buffers import StatePrecision, check_precision, wide
from unscheduled.state.param_groups import Group

Value = TypeVar("Value")


class ScheduleFreeOptimizer(SteppingOptimizer):
    """Schedule-Free learning: gradients are taken at y, between a base iterate z and its running average x.

        z' = z - gamma (d(g) + lambda w),    w = y or z
        x' = (1 - c) x + c z'
        y' = (1 - beta') z' + beta' x'

    While training the parameters hold y. After :meth:`eval` they hold x, which is good at every step: no schedule,
    no stopping time. The state of a parameter is the gap z - x and the buffers of the rule.

    An algorithm derives from this class once and states its rule (how a gradient becomes d), where its beta stands
    and the ranges of its own arguments (see :class:`unscheduled.optimizer.planning.PlanningOptimizer`); all else is
    here. The only subclasses of an algorithm are those that give it other defaults.

    Args:
        params: parameters, named parameters or parameter groups, as for every ``torch.optim.Optimizer``.
        implementation: ``"auto"`` (the fastest that there is), ``"loop"``, ``"foreach"``, ``"compiled"`` or
            ``"fused"``, for all groups: see :mod:`unscheduled.kernels`.
        state_precision: ``"float32"`` (or the parameters' own precision, if that is higher) or ``"compact"``, for all
            groups: see :mod:`unscheduled.state.buffers`.
        capturable: whether a step may be captured in a CUDA graph and replayed, see
            :mod:`unscheduled.optimizer.capture`.
        foreach: True is ``implementation="foreach"``, False is ``"loop"``: for code written for ``schedulefree``.
        fused: True is ``implementation="fused"``, False is the fastest other: for code written for ``torch.optim``.
        options: the defaults of the groups, see :mod:`unscheduled.state.param_groups`, and the algorithm's own.

    Raises:
        ValueError: if an option is out of its range, at construction or in :meth:`add_param_group`.

    Example:
        >>> import unscheduled
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=0.5)
        >>> isinstance(optimizer, ScheduleFreeOptimizer), isinstance(optimizer, torch.optim.Optimizer)
        (True, True)

    Source: Defazio et al., "The Road Less Scheduled", arXiv 2405.15682.
    """

    _exports_to: ClassVar[frozenset[str]] = frozenset()
    """Where its state can be exported to, to go on there: ``"schedulefree"``, the package, or ``"AdamW"``."""

    _chosen: tuple[Implementation, str] = ("auto", "")
    """The implementation that the constructor's arguments select, and the argument that selects it."""

    _written_as: Mapping[str, str] = MappingProxyType({})
    """The constructor's name of an option, where it differs from the name in a group."""

    _is_made: bool = True  # all groups of the constructor are there

    def __init__(
        self,
        params: ParamsT,
        *,
        implementation: Implementation,
        foreach: bool | None,
        fused: bool | None = None,
        state_precision: StatePrecision = "float32",
        capturable: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(capturable, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"capturable = {capturable!r} is neither True nor False")
        self._chosen = kernels.chosen(implementation, foreach, fused)
        self._batches, self._known_states, self._is_made = {}, KnownStates(), False
        self.state_precision = state_precision
        self.capturable = capturable
        self.implementation = self._chosen[0]
        defaults = param_groups.resolved(options, defaults={})
        self._check(defaults)
        if fused is False and foreach is None and not capturable:  # captured steps are not made by the fused kernel
            self.implementation = kernels.unfused(self._rule(defaults))
        super().__init__(params, defaults)
        self._check_memory(())
        self._is_made = True

    # Groups.

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, at any time and in either mode. Its averaging starts afresh.

        Args:
            param_group: its ``params``, and the options that differ from the constructor's.

        Raises:
            TypeError: if it is no dictionary, or its ``params`` are no tensors.
            ValueError: if an option is out of its range, an entry is no option, or a parameter is in a group already;
                nothing is changed.
        """
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"param_group must be a dict with the key 'params', but got {type(param_group)}")
        try:
            group = param_groups.resolved(param_group, self.defaults)
            group["params"] = param_groups.listed(group["params"])
            params = param_groups.tensors(group["params"])
            self._refuse_unknown_entries(group)
            self._check(group, params)
            if self._is_made:  # else all are looked at once, when all are there
                self._check_memory(params)
            if group["step_size"] != self.defaults["step_size"]:
                raise ValueError(
                    f"step_size = {group['step_size']} in a group: it is for all groups, so give it to the constructor"
                )
        except ValueError as error:
            raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
        training = self.training
        counters = param_groups.fresh_counters(self._next_beta(group, 0), training)
        for name in NORM_AVERAGE if self.param_groups else ():  # which all groups share
            counters[name] = self.param_groups[0][name]
        super().add_param_group(group | counters)
        if not training:
            self._averaged.update(self.param_groups[-1]["params"])
            self._gradients.watch(self._averaged - self._given_up)
        self._looked_at = -1
        for attached in self._attachments:  # the model may have new modules as well
            attached.hook()

    def _check_memory(self, params: Sequence[Tensor]) -> None:
        """Raise ValueError if two of the parameters, or of these that are to come, share memory."""
        own = self._params()
        every = [*own, *params]
        found = memory.overlapping(every)
        if found is not None:
            first, second = (
                self._find(every[at])[1] if at < len(own) else f"one to add (shape {tuple(every[at].shape)})"
                for at in found
            )
            raise ValueError(
                f"{first} and {second} share memory, so that each would be moved twice and have no average of its own: "
                "share the Parameter itself, as in head.weight = embedding.weight, and give it once"
            )

    def _check(self, group: Group, params: Sequence[Tensor] = ()) -> None:
        param_groups.check(group, self._written_as)
        self._check_rule(group)
        rule = self._rule(group)
        rule.ordered(self._rule_scalars(group, rule, 1))
        implementation, written = self._chosen
        written = written if self.implementation == implementation else ""
        kernels.check(self.implementation, rule, params, written)
        self._check_step_size(group)
        check_precision(self.state_precision, params, rule.compact is not None)
        self._check_beta(group)
        if self.capturable:
            kernels.check_capturable(self.implementation, written)
            self._check_capturable(group, params)

    def _check_beta(self, group: Group) -> None:
        """Raise ValueError if the interpolation of a group does not take its beta."""
        try:
            self._next_beta(group, 0)
        except ValueError as error:
            given = [f"{name} = {group[name]}" for name in ("momentum", "betas", "interpolation") if name in group]
            raise ValueError(f"{', '.join(given)}: {error}") from None

    def _check_capturable(self, group: Group, params: Sequence[Tensor]) -> None:
        """Raise ValueError if a step of a group cannot be captured."""
        if self.state_precision == "compact":
            raise ValueError("capturable = True, state_precision = 'compact' exclude each other: use 'float32'")
        capture.check(group, params)
        self._counters_after(capture.tried(group), 1.0)  # which may branch on what is on the device

    # The step.

    @overload
    def step(self, closure: None = None, *, loss: Loss | None = None, grad_norm: Number | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Value], *, grad_norm: Number | None = None) -> Value: ...

    def step(
        self,
        closure: Callable[[], Value] | None = None,
        *,
        loss: Loss | None = None,
        grad_norm: Number | None = None,
    ) -> Value | None:
        """One optimization step from the gradients at y.

        It may be compiled, by itself or in a function that calls it. Then the update is a graph of its own, which
        serves all steps; what comes before and after it stays Python, so ``fullgraph=True`` is refused.

        Args:
            closure: evaluates the model anew, calls backward and returns the loss. It runs at y, from either mode;
                in eval mode the parameters are back at the (new) average afterwards.
            loss: the loss at y, from which :class:`PolyakStep` computes the step size; other step sizes ignore it. A
                scalar, the one that ``backward`` was called on, or a list of such if the gradients of several were
                accumulated. With a closure, what it returns is used instead.
            grad_norm: the 2-norm of the gradient before it was clipped, as ``torch.nn.utils.clip_grad_norm_`` returns
                it. :class:`PolyakStep` would take a clipped gradient for a flat loss, and make a larger step.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: in eval mode without a closure, or if a gradient is sparse; nothing is changed.
            ValueError: if the learning rate or the beta of a group has left its range, a group has an entry that is no
                option, or, with :class:`PolyakStep`, if the loss is missing, no scalar, not finite or below f*, or the
                gradient is not finite; nothing is changed.
        """
        if closure is None:
            compiling = torch.compiler.is_compiling()
            if self._check_mode_outside_the_graph() if compiling else self._check_mode():
                warnings.warn(
                    "step() in train mode while the attached model is in eval mode, with its dropout and BatchNorm: "
                    "call model.train(), which moves the parameters too, and not optimizer.train()",
                    stacklevel=3,  # past the wrapper of a step
                )
            self._update(loss, grad_norm)
            return None
        if loss is not None:
            raise ValueError(f"closure, loss = {loss} exclude each other: let the closure return the loss")
        with self._mode_given_back():
            self.train()
            with torch.enable_grad():
                value = closure()
            self.train()  # should the closure have evaluated
            self._update(cast(Any, value), grad_norm)
        return value

    def _check_mode(self) -> bool:
        """Whether an attached model is in eval mode, and the optimizer is not; in eval mode the step is refused."""
        if self._given_up:
            self._refuse_without_all_parameters()
        if not self.training and not self._only_initialises():
            raise RuntimeError(
                "step() in eval mode, where the parameters hold the average x and not y: "
                f"call {self._switch_name()}.train() before the forward pass of a training step"
            )
        return self.training and not all(self._flags())

    def _refuse_without_all_parameters(self) -> NoReturn:
        first = next(param for param in self._params() if param in self._given_up)
        raise RuntimeError(
            f"another optimizer has taken parameters of this one ({len(self._given_up)}, from {self._find(first)[1]} "
            "on): make a new one of those that are left, or attach() this again to take them back"
        )

    _check_mode_outside_the_graph = untraced(_check_mode)

    def _switch_name(self) -> str:
        return "model" if False in self._flags() else "optimizer"

    def _only_initialises(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes the buffers: a first step, all zero, at lr = 0."""
        return all(self._nothing_to_learn(group) for group in self.param_groups)

    # The end-game.

    def restart_averaging(self) -> None:
        """Forget the average: from the next step on it is that of the new z alone, as in a run that starts there.

        Neither x nor y changes now. The next step has c = 1, which puts x at the new z, the one after it 1/2 (if r = 0)
        …; the steps of the averaging (t in its weights, and its own warmup) count from here, the warmup of the learning
        rate does not. It ends :meth:`freeze_averaging`.

        For a cool-down: after a restart x is the mean over the last stretch of the run alone.
        """
        self.read_back()
        for group in self.param_groups:
            group.update(averaging_start=group["step"], averaging_state="restarting", weight_sum=0.0, lr_max=0.0)
        self._write_counters()

    def freeze_averaging(self, frozen: bool = True) -> None:
        """Leave x where it is from now on (c = 0), while z and y go on; with ``frozen=False``, average again.

        This applies to the present groups; a group that is added later averages.
        Steps that are made while x is frozen have no weight: they never enter x, though t in the weights counts them. y
        stays between z and the frozen x. A :meth:`restart_averaging` that no step has followed yet takes effect when
        averaging goes on.
        """
        self.read_back()
        changes = param_groups.FROZEN if frozen else param_groups.THAWED
        for group in self.param_groups:
            state = group["averaging_state"]
            group["averaging_state"] = changes.get(state, state)
        self._write_counters()

    # Looking at it.

    def __repr__(self) -> str:
        """The options of each group, as ``torch.optim`` has them; the counters are in its state dict."""
        text = f"{type(self).__name__} ("
        for index, group in enumerate(self.param_groups):
            shown = set(group) - param_groups.COUNTERS - {"params", "param_names"}
            text += f"\nParameter Group {index}\n"
            text += "".join(f"    {name}: {group[name]}\n" for name in sorted(shown))
        return f"{text})"

    def metrics(self, closure: Callable[[], Number] | None = None) -> dict[str, float]:
        """Numbers to log, of the last step; with several groups each name is preceded by ``group0/``, ``group1/``, …

        ``step``; ``lr``, as set; ``effective_lr``, the step size gamma after warmup and rectification; ``beta``;
        ``c``, the weight of the newest z in the average; ``window`` = 1/c, the steps that the average spans;
        ``gap_norm``, the Euclidean norm of z - x, which is not finite once a gradient was not. With sharded
        parameters (DTensors) it is the norm over all shards, so all processes have to call this, not only the one that
        logs.

        Args:
            closure: computes a loss from the parameters as they are. It is called at x and at y, without gradient, for
                ``loss_at_x`` and ``loss_at_y``, whose difference is what averaging is worth at present: if the loss at
                x stays above that at y for long, beta is too small. Call it with the model in eval mode: dropout and
                BatchNorm act as the model's flags say, with the same statistics at both. The closure may not switch the
                modes.

        Raises:
            RuntimeError: if there is a closure and an attached model is in train mode, whose BatchNorm would take note
                of the batches, or if the closure has switched the modes.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = unscheduled.SGDScheduleFree(model.parameters(), lr=0.1).attach(model)
            >>> model(torch.ones(2)).square().sum().backward()
            >>> optimizer.step()
            >>> _ = model.eval()
            >>> metrics = optimizer.metrics(lambda: model(torch.ones(2)).square().sum())
            >>> metrics["window"], metrics["loss_at_x"] == metrics["loss_at_y"]  # x = y = z after the first step
            (1.0, True)
        """
        metrics = self._losses(closure) if closure else {}
        self.read_back()
        for index, group in enumerate(self.param_groups):
            prefix = f"group{index}/" if len(self.param_groups) > 1 else ""
            gaps = [wide(state, "gap") for param in group["params"] if (state := self.state.get(param))]
            values = {
                "step": float(group["step"]),
                "lr": float(group["lr"]),
                "effective_lr": group["effective_lr"],
                "beta": group["beta"],
                "c": group["c"],
                "window": 1.0 / group["c"] if group["c"] > 0.0 else float("inf"),
                "gap_norm": collectives.norm(gaps),
            }
            metrics.update((prefix + name, value) for name, value in values.items())
        return metrics

    @torch.no_grad()
    def _losses(self, closure: Callable[[], Number]) -> dict[str, float]:
        if True in self._flags():
            raise RuntimeError("metrics(closure) while the attached model is in train mode: call model.eval() before")
        losses: dict[str, float] = {}
        with self._mode_given_back():
            for name, training in (("loss_at_x", False), ("loss_at_y", True)):
                self.train(training)
                losses[name] = collectives.as_float(closure())
                if self.training != training:
                    raise RuntimeError("the closure of metrics() has switched the modes: it may only compute a loss")
        return losses
