"""The one shell round every Schedule-Free algorithm: everything public, and the order of a step.

Its parts do the work: :class:`~unscheduled.optimizer.weights.Weights` knows what the parameters hold,
:class:`~unscheduled.optimizer.attachments.Attachments` the models, and
:class:`~unscheduled.optimizer.stepper.Stepper` makes the steps. They are given the groups and the states, which torch
replaces when a state dict is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from unscheduled import kernels
from unscheduled.checkpoints import matching, optimizer_state
from unscheduled.checkpoints.exporting import last_lr
from unscheduled.formulas.distance import DistanceStep
from unscheduled.formulas.iterates import coefficients
from unscheduled.formulas.validation import require_count
from unscheduled.kernels import Implementation, loop, untraced
from unscheduled.model.follower import Follower
from unscheduled.optimizer import capture, checks, collectives
from unscheduled.optimizer.algorithm import Algorithm
from unscheduled.optimizer.attachments import Attachments
from unscheduled.optimizer.counters import next_beta
from unscheduled.optimizer.plan import Plan
from unscheduled.optimizer.planning import only_initialises, was_stepped
from unscheduled.optimizer.polyak import Loss, Number
from unscheduled.optimizer.stepper import Begun, Stepper
from unscheduled.optimizer.weights import Weights
from unscheduled.state import param_groups
from unscheduled.state.buffers import StatePrecision, wide
from unscheduled.state.device_math import on_host
from unscheduled.state.interruption import Deferred
from unscheduled.state.param_groups import Group, counters_on_host
from unscheduled.state.parameter import Entry, Iterates

if TYPE_CHECKING:
    from typing_extensions import Self

Value = TypeVar("Value")


class ScheduleFreeOptimizer(Algorithm, torch.optim.Optimizer):
    """Schedule-Free learning: gradients are taken at y, between a base iterate z and its running average x.

        z' = z - gamma (d(g) + lambda w),    w = y or z
        x' = (1 - c) x + c z'
        y' = (1 - beta') z' + beta' x'

    While training the parameters hold y. After :meth:`eval` they hold x, which is good at every step: no schedule,
    no stopping time. The state of a parameter is the gap z - x and the buffers of the rule.

    An algorithm derives from this class once and states its rule (how a gradient becomes d), where its beta stands
    and the ranges of its own arguments (see :class:`unscheduled.optimizer.algorithm.Algorithm`); all else is
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
        decay_at: the point that weight decay is proportional to, ``"y"`` or ``"z"``.
        maximize: follow the gradient upwards.
        options: the other defaults of the groups, see :mod:`unscheduled.state.param_groups`, and the algorithm's own.

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

    _chosen: tuple[Implementation, str] = ("auto", "")
    """The implementation that the constructor's arguments select, and the argument that selects it."""

    _is_made: bool = True  # all groups of the constructor are there

    _weights: Weights
    _attachments: Attachments
    _stepper: Stepper

    def __init__(
        self,
        params: ParamsT,
        *,
        implementation: Implementation = "auto",
        foreach: bool | None = None,
        fused: bool | None = None,
        state_precision: StatePrecision = "float32",
        capturable: bool = False,
        decay_at: Literal["y", "z"] = "y",
        maximize: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(capturable, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"capturable = {capturable!r} is neither True nor False")
        self._chosen = kernels.chosen(implementation, foreach, fused)
        self._weights, self._attachments, self._stepper = Weights(), Attachments(), Stepper()
        self._is_made = False
        self.state_precision = state_precision
        self.capturable = capturable
        self.implementation = self._chosen[0]
        defaults = param_groups.resolved(options | {"decay_at": decay_at, "maximize": maximize}, defaults={})
        self._check(defaults)
        if fused is False and foreach is None and not capturable:  # captured steps are not made by the fused kernel
            self.implementation = kernels.unfused(self._rule(defaults))
        super().__init__(params, defaults)
        checks.check_memory(self._params(), (), self._name)
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
            param_groups.refuse_unknown(group, self.defaults)
            self._check(group, params)
            if self._is_made:  # else all are looked at once, when all are there
                checks.check_memory(self._params(), params, self._name)
            if group["step_size"] != self.defaults["step_size"]:
                raise ValueError(
                    f"step_size = {group['step_size']} in a group: it is for all groups, so give it to the constructor"
                )
        except ValueError as error:
            raise ValueError(f"parameter group {len(self.param_groups)}: {error}") from None
        training = self.training
        counters = param_groups.fresh_counters(next_beta(self, group, 0), training, group["step_size"])
        for name in param_groups.OF_STEP_SIZE if self.param_groups else ():
            if name in counters and name in self.param_groups[0]:
                counters[name] = on_host(self.param_groups[0][name])
        added = group | counters
        if self.capturable:  # while a step is captured this is refused, before anything is changed
            added["params"] = params
            capture.bring_to_device(added, (), ())
            added["params"] = group["params"]
        super().add_param_group(added)
        if not training:
            self._weights.note(self._weights.at_x.union(self.param_groups[-1]["params"]))
        self._attachments.look_again()

    def _check(self, group: Group, params: Sequence[Tensor] = ()) -> None:
        """Raise ValueError if an option of a group is out of its range, or the group cannot have these parameters."""
        checks.check_group(self, group, params, self._chosen)

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
                gradient is not finite, as also with :class:`DistanceStep`; nothing is changed.
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
        if self._weights.given_up:
            self._refuse_without_all_parameters()
        if not self.training and not self._only_initialises():
            raise RuntimeError(
                "step() in eval mode, where the parameters hold the average x and not y: "
                f"call {self._switch_name()}.train() before the forward pass of a training step"
            )
        return self.training and not all(self._attachments.flags())

    def _refuse_without_all_parameters(self) -> NoReturn:
        given_up = self._weights.given_up
        first = next(param for param in self._params() if param in given_up)
        raise RuntimeError(
            f"another optimizer has taken parameters of this one ({len(given_up)}, from {self._name(first)} "
            "on): make a new one of those that are left, or attach() this again to take them back"
        )

    _check_mode_outside_the_graph = untraced(_check_mode)

    def _switch_name(self) -> str:
        return "model" if False in self._attachments.flags() else "optimizer"

    def _only_initialises(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes the buffers: a first step, all zero, at lr = 0."""
        stepped = was_stepped(self.state)
        return all(only_initialises(group, self.capturable, stepped) for group in self.param_groups)

    def _update(self, loss: Loss | None, grad_norm: Number | None) -> None:
        """Make a step as a whole: if it is interrupted, tensors and numbers are of the same step afterwards.

        Within ``torch.compile``, the graph is what stands between two parts that it cannot look into, and an
        interruption may come between the two.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._attachments.take_over(self, self._params)
        with torch.no_grad():
            if compiling:
                begun = self._begin_outside_the_graph(loss, grad_norm, compiling=True)
                loop.update_all(begun.traceable)
                self._end_outside_the_graph(begun)
            else:
                plans = self._plan(loss, grad_norm)
                with Deferred():
                    self._end(self._run(plans, compiling=False))

    def _begin(self, loss: Loss | None, grad_norm: Number | None, compiling: bool) -> Begun:
        """Plan the step and make it; within ``torch.compile``, return the arguments of the loop."""
        self._attachments.take_over(self, self._params)
        return self._run(self._plan(loss, grad_norm), compiling)

    def _plan(self, loss: Loss | None, grad_norm: Number | None) -> list[Plan]:
        """The plans of all groups. Until they are there, the step may be refused; no weight or counter changes."""
        self._check_mover()
        self._weights.check_before_step(self._entries, self._name)
        gathered = self._stepper.gather(self, self.param_groups, self.state, self._name)
        if not any(plan.grads for plan in gathered):
            self._attachments.look_for_other_parameters()
        self._attachments.was_copied = False
        self._settle()
        return self._stepper.plan(self, gathered, self.state, loss, grad_norm)

    def _check_mover(self) -> None:
        """Raise unless the optimizer that moves z in place of a rule can make a step for the groups as they are."""
        if self._mover is not None:
            self._mover.check_groups(self.param_groups, self.state, self._check)

    def _run(self, plans: list[Plan], compiling: bool) -> Begun:
        """Make a planned step; within ``torch.compile``, return the arguments of the loop."""
        self._weights.reconciliation.close(self.state)
        begun = self._stepper.run(self, plans, self.state, compiling)
        if any(plan.only_initialises and plan.params for plan in plans):  # as if a file had been loaded
            self._weights.reconciliation.file_training = self.training
        return begun

    def _end(self, begun: Begun) -> None:
        """Note that the step was made."""
        self._stepper.count(begun, self.state)
        self._weights.live.outdate()
        if self._weights.writes.is_on:
            self._weights.writes.note_step([param for plan in begun.plans for param in plan.params], self._params)

    _begin_outside_the_graph, _end_outside_the_graph = untraced(_begin), untraced(_end)

    # Modes.

    @property
    def training(self) -> bool:
        """Whether the parameters hold y (True, from birth); False once any of them holds x."""
        return self._weights.training

    @untraced
    def train(self, mode: bool = True) -> Self:
        """Put y, the gradient point, into the parameters; with ``mode=False``, do :meth:`eval`.

        The bits of y are those from before :meth:`eval`. But if weights were written in the meantime, as by loading a
        checkpoint, what was written is the new x, and y is formed from it and the gap.
        """
        self._settle()
        self._notice_replaced(self._params())
        self._put(set() if mode else set(self._params()))
        return self

    def eval(self) -> Self:
        """Put the average x into the parameters: what to evaluate, save and ship. y is kept aside, bit for bit."""
        return self.train(False)

    @contextmanager
    def averaged_parameters(self) -> Generator[Self, None, None]:
        """Within the ``with`` block the parameters hold the average x; afterwards the mode is what it was before.

        But if an attached model is switched within the block, the mode afterwards is what that model asks for.

        Not between a forward pass and its backward: autograd refuses weights that were written in between.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = unscheduled.SGDScheduleFree([weight], lr=1.0)
            >>> with optimizer.averaged_parameters():
            ...     loss = weight.sum()
            >>> optimizer.training
            True
        """
        with self._mode_given_back():
            yield self.eval()

    @contextmanager
    def _mode_given_back(self) -> Generator[None, None, None]:
        """Afterwards the mode is what it was before, or what the attached models ask for if they were switched."""
        before = set(self._weights.at_x)
        flags = dict(zip(self._attachments.models, self._attachments.flags(), strict=True))
        try:
            yield
        finally:
            if all(flags.get(tie) is tie.training for tie in self._attachments.models):
                self._put(before)
            else:
                self._follow()

    @untraced
    @torch.inference_mode(False)  # else y would be a tensor that cannot be trained on
    @torch.no_grad()
    def _put(self, at_x: set[Tensor]) -> None:
        """Put x into these parameters and y into the others."""
        if self._weights.are_at(at_x):
            return
        with Deferred():  # y or x, and what notes that, as a whole
            self._weights.switch(at_x, self._entries())
            self._note_mode()
            torch.clear_autocast_cache()  # it may hold casts of the weights of the other mode
            self._attachments.switched()

    def _note_mode(self) -> None:
        """Have a copy of the mode in the groups, for checkpoints."""
        for group in self.param_groups:
            group["training"] = self.training

    @torch.inference_mode(False)
    @torch.no_grad()
    def _settle(self) -> None:
        """Bring a loaded state together with the weights, and end the loading of weights, also one that has failed."""
        if self._weights.reconciliation.is_open:
            self._weights.settle(self._entries())

    def _notice_replaced(self, params: list[Tensor]) -> None:
        """Note which of these parameters took the place of others that held x, with their states."""
        if self._weights.notice_replaced(params, self.state, self._params):
            self._note_mode()

    # Attaching.

    def attach(self, model: nn.Module, *, bn_batches: int = 0) -> Self:
        """Tie the parameters to the life cycle of their model, which is enough from then on.

        - ``model.training``, however it is changed, moves the parameters: y in train mode, x in eval mode. The flags of
          submodules alone do not. :meth:`train` and :meth:`eval` still work, until the model's flag next changes.
        - ``model.state_dict()``, also of a part of the model or a wrapper round it, gives a snapshot of x in either
          mode, without touching the parameters (``keep_vars=True`` gives the parameters themselves).
        - ``model.load_state_dict()`` brings a new x, also in the middle of training, which goes on from y. The bits of
          y return if it is the x that belongs to the optimizer's state, in whichever order the two are loaded.
        - A deep copy or a pickle of the model is a plain model of its own that holds x. That of a part of it alone
          holds what the part holds: y in train mode.

        Attach after the model was wrapped, sharded or moved, since that may make new parameters. It looks through
        ``torch.compile`` and data parallelism. Several models and several optimizers may be attached to each other; but
        another optimizer that holds a parameter of this one gives way: its parameters go to x, and it is detached. If
        an optimizer of another kind takes over, nothing can tell: call :meth:`eval` and :meth:`detach` before.

        Args:
            model: the module that is set to train and eval mode.
            bn_batches: how many of the last training batches to keep (by reference), to re-estimate the statistics of
                BatchNorm at x from before the next evaluation; 0 for none. Only calls of ``model`` itself are seen, not
                those of its parts. See :func:`unscheduled.update_bn`.

        Raises:
            TypeError: if ``model`` is no module.
            ValueError: if it has no parameter of this optimizer, or ``bn_batches`` is no integer >= 0. Nothing is
                changed then.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = unscheduled.AdamWScheduleFree(model.parameters()).attach(model)
            >>> model.eval()
            Linear(in_features=2, out_features=1, bias=True)
            >>> optimizer.training
            False
        """
        require_count(0, "bn_batches", bn_batches, "give the number of training batches to keep; 0 for none")
        params = set(self._params())
        tie = self._attachments.tie_to(model, params)
        if tie is None:
            return self
        self._settle()
        self._weights.given_up.clear()
        if not self._weights.writes.is_on:
            self._weights.writes.start(self._params())
        self._attachments.add(tie, self._as_follower(), bn_batches, params)
        self._put(self._attachments.wanted_at_x(params))
        return self

    def detach(self) -> Self:
        """Undo every :meth:`attach`: the parameters stay as they are, and are switched by hand from then on."""
        self._attachments.detach()
        self._weights.writes.stop()
        return self

    def _as_follower(self) -> Follower:
        """This optimizer, as attached models know it: one, also where a trainer's wrapper attaches it."""
        return self._attachments.follower or Follower(
            optimizer=self,
            params=self._followed,
            follow=self._follow,
            averages=self._averages,
            steps=self._steps,
            before_load=self._before_load,
            after_load=self._after_load,
            end_load=self._settle,
            give_up=self._give_up,
        )

    def _followed(self) -> list[Tensor]:
        """The parameters, but for those that another optimizer has taken."""
        params, given_up = self._params(), self._weights.given_up
        return [param for param in params if param not in given_up] if given_up else params

    def _steps(self) -> int:
        """How many steps were made, or 0 if none was since a state was loaded."""
        was_loaded = self._weights.reconciliation.file_training is not None
        return 0 if was_loaded else sum(int(on_host(group["step"])) for group in self.param_groups)

    @untraced
    def _follow(self) -> None:
        """Put into the parameters what the flags of the attached models ask for."""
        self._settle()
        self._notice_replaced(self._params())
        self._put(self._attachments.wanted_at_x(self._params()))

    @untraced
    def _give_up(self, params: set[Tensor], at_average: bool) -> None:
        """Leave parameters to another optimizer; if these are all, it is detached.

        They are put at x, or (not ``at_average``) stay as they are. Weights that were written since the last step stay
        in any case. What is there then counts as the x of this optimizer.
        """
        self._settle()
        weights = self._weights
        at_y = params - weights.at_x
        weights.at_x = weights.at_x | (weights.written_since(at_y, self._entries()) if at_average else at_y)
        self._put(weights.at_x | params)
        weights.given_up |= params
        self._note_mode()
        if not self._followed():
            self.detach()

    # Weights that are loaded into an attached model.

    @torch.inference_mode(False)
    @torch.no_grad()
    def _before_load(self, module: nn.Module, call: object) -> None:
        """Expect weights to be written into the parameters, in any mode: the first module of a call, and the call."""
        if not self._weights.reconciliation.is_of(call):
            self._settle()
            self._weights.reconciliation.begin_load(module, call, self._entries(), self._weights.at_x)

    def _after_load(self, module: nn.Module, call: object) -> None:
        """Take the weights that were written as x, if this module is the first of the call."""
        if self._weights.reconciliation.ends_with(module, call):
            self._settle()

    # Parameters.

    def _params(self) -> list[Tensor]:
        return param_groups.params_of(self.param_groups)

    def _entries(self) -> list[Entry]:
        """The parameters that have a state, with it and the beta that formed their y."""
        entries: list[Entry] = []
        for group in self.param_groups:
            here = [(param, self.state.get(param)) for param in cast(list[Tensor], group["params"])]
            if any(state for _, state in here):
                beta = on_host(group["beta"])
                entries.extend(Entry(param, state, beta) for param, state in here if state)
        return entries

    def _find(self, param: Tensor) -> tuple[Group, str]:
        """The group of a parameter, and what to call it."""
        for index, group in enumerate(self.param_groups):
            for position, candidate in enumerate(group["params"]):
                if candidate is param:
                    return group, matching.param_name(group, index, position)
        raise ValueError(f"a tensor of shape {tuple(param.shape)} is no parameter of this optimizer: see param_groups")

    def _name(self, param: Tensor) -> str:
        return self._find(param)[1]

    @torch.no_grad()
    def iterates(self, param: Tensor) -> Iterates:
        """The three sequences of a parameter, as new tensors in the precision of its state, from either mode.

        Args:
            param: one of the optimizer's parameters.

        Raises:
            ValueError: if ``param`` is none of them.
        """
        group, _ = self._find(param)
        self._settle()
        self._notice_replaced([param])
        return self._weights.iterates(param, self.state.get(param), on_host(group["beta"]))

    @torch.no_grad()
    def _averages(self, wanted: Iterable[Tensor] = ()) -> Callable[[Tensor], Tensor | None]:
        """A function that returns a snapshot of x of a parameter, or None: see :meth:`Weights.average_reader`."""
        entries = self._entries()
        self._weights.reconciliation.settle_state(entries, self._weights.at_x)
        self._notice_replaced(self._params())
        return self._weights.average_reader(entries, wanted)

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
        logs. With a :class:`DistanceStep` also ``distance``, the root mean square distance R of x from its start, and
        ``gamma``, the step that R gave.

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
        for index, group in enumerate(self.param_groups):
            prefix, counters = f"group{index}/" if len(self.param_groups) > 1 else "", counters_on_host(group)
            gaps = [wide(state, "gap") for param in group["params"] if (state := self.state.get(param))]
            values = {
                "step": float(counters["step"]),
                "lr": float(group["lr"]),
                "effective_lr": counters["effective_lr"],
                "beta": counters["beta"],
                "c": counters["c"],
                "window": 1.0 / counters["c"] if counters["c"] > 0.0 else float("inf"),
                "gap_norm": collectives.norm(gaps),
            }
            if isinstance(group["step_size"], DistanceStep):
                values |= {"gamma": counters["distance_gamma"], "distance": counters["distance_reached"]}
            metrics.update((prefix + name, value) for name, value in values.items())
        return metrics

    @torch.no_grad()
    def _losses(self, closure: Callable[[], Number]) -> dict[str, float]:
        if True in self._attachments.flags():
            raise RuntimeError("metrics(closure) while the attached model is in train mode: call model.eval() before")
        losses: dict[str, float] = {}
        with self._mode_given_back():
            for name, training in (("loss_at_x", False), ("loss_at_y", True)):
                self.train(training)
                losses[name] = collectives.as_float(closure())
                if self.training != training:
                    raise RuntimeError("the closure of metrics() has switched the modes: it may only compute a loss")
        return losses

    # The end of a run.

    def restart_averaging(self) -> None:
        """Forget the average: from the next step on it is that of the new z alone, as in a run that starts there.

        Neither x nor y changes now. The next step has c = 1, which puts x at the new z, the one after it 1/2 (if r = 0)
        …; the steps of the averaging (t in its weights, and its own warmup) count from here, the warmup of the learning
        rate does not. It ends :meth:`freeze_averaging`.

        For a cool-down: after a restart x is the mean over the last stretch of the run alone.
        """
        with Deferred():
            for group in self.param_groups:
                restarted = {"averaging_start": group["step"], "averaging_state": "restarting"}
                param_groups.put(group, restarted | {"weight_sum": 0.0, "lr_max": 0.0})

    def freeze_averaging(self, frozen: bool = True) -> None:
        """Leave x where it is from now on (c = 0), while z and y go on; with ``frozen=False``, average again.

        This applies to the present groups; a group that is added later averages.
        Steps that are made while x is frozen have no weight: they never enter x, though t in the weights counts them. y
        stays between z and the frozen x. A :meth:`restart_averaging` that no step has followed yet takes effect when
        averaging goes on.
        """
        changes = param_groups.FROZEN if frozen else param_groups.THAWED
        for group in self.param_groups:
            state = counters_on_host(group)["averaging_state"]
            param_groups.put(group, {"averaging_state": changes.get(state, state)})

    def to_torch(self) -> torch.optim.Optimizer:
        """Hand the run over to a plain optimizer, which goes on from the average x: to finish with a schedule, say.

        The parameters are put at x, and this optimizer is detached; in eval mode, it refuses to step from then on. What
        takes over depends on the algorithm:

        - :class:`AdamWScheduleFree` and :class:`RAdamScheduleFree`: ``torch.optim.AdamW``, with the second moments and
          their counts, see :func:`export_adamw_state_dict`;
        - :class:`SGDScheduleFree`: ``torch.optim.SGD`` without momentum;
        - :class:`ScheduleFreeWrapper`: its base, as it is, except that its state has the precision of the parameters.

        The learning rate of each group is (1 - beta (1 - c)) gamma, gamma the last effective one (as set, where that
        was 0): that is how far a gradient moves y itself in the same step. It is gamma without averaging and at the
        first step, and tends to (1 - beta) gamma, at which plain gradient descent is stable even where it is not at
        gamma; at beta = 1 it is next to nothing. Set another in its ``param_groups``, and let a schedule drive that to
        0. AdamC's decay becomes gamma lambda.

        Raises:
            ValueError: if torch has no such optimizer, a wrapper adds weight decay to its base's, or a Polyak step has
                not been made yet; nothing is changed.

        Example:
            >>> import torch
            >>> import unscheduled
            >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = unscheduled.AdamWScheduleFree([weight], lr=0.1)
            >>> (weight**2).sum().backward()
            >>> optimizer.step()
            >>> plain = optimizer.to_torch()
            >>> type(plain).__name__, round(plain.param_groups[0]["lr"], 6)
            ('AdamW', 0.1)
        """
        counters = list(map(counters_on_host, self.param_groups))
        plain = self._plain([last_lr(group) for group in self.param_groups])
        self.eval().detach()
        for group, ours in zip(plain.param_groups, counters, strict=True):
            move_in_y = coefficients(ours["c"], ours["beta"], ours["beta"]).move_in_y
            param_groups.put_lr(group, move_in_y * float(group["lr"]))
        return plain

    # State dicts.

    def state_dict(self) -> dict[str, Any]:
        """The state, as numbers, strings and tensors: ``torch.load(weights_only=True)`` reads it.

        Beside the gap and the buffers it has the bits of y, so that training resumes bit for bit whether the model's
        file holds x or y: ``training`` in its groups tells which (x where a model is attached). The names of the
        parameters are in it if the optimizer was given names or the models that hold them are attached, and so is the
        ``version`` of its format.

        As in torch, its tensors are the optimizer's own (y is the parameter's, or what is kept aside while it holds x;
        of 16 bits it is ``y`` and ``low``), so that it needs no memory. To keep it while training goes on, copy it at
        once, with ``copy.deepcopy``; to save it from a thread, use ``torch.distributed.checkpoint.async_save``.
        """

        def describe(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            self._settle()
            self._notice_replaced(self._params())
            states = self._weights.given_out(self._entries())
            training = self.training and not self._attachments.models
            names = self._attachments.names(self.param_groups)
            optimizer_state.encode(state_dict, self.param_groups, states, names, training)
            if self._mover is not None:
                self._check_mover()
                self._mover.nest(state_dict)

        hook = self.register_state_dict_post_hook(describe, prepend=True)  # before the hooks of users
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave: the numbers of the groups, buffers in their own precision, and the mode.

        Load the model before or after, and switch modes in between as you like: weights and state are matched until the
        first step. If the weights are, bit for bit, the y or the x of the state, the parameters get y or x, as the mode
        asks; otherwise they are taken as the new x, or, in a state of train mode, as y. The mode is that of the
        attached models, if there are any, else that of the file. What a file of an older version lacks takes its
        default. Parameters are found by their names, in whatever order
        and groups, if both sides have names (on one side all may have a further prefix). They are found by their order
        if a side has no names, or has one for two parameters; then the order of the names has to be the same.

        It also takes state dicts of other optimizers: those of the ``schedulefree`` package, whose run continues, and
        those of ``torch.optim.Adam`` and ``AdamW``, whose second moments and their counts are kept: a new run starts
        from x = y = z at the weights, with this optimizer's options.

        Raises:
            ValueError: if it was made by another kind of optimizer, for other parameters (names, count or shape), with
                other axes or options that are unknown here, holds a number out of its range, or is one of an optimizer
                that has made a step since; the message names it, and nothing is changed.
        """
        loaded: list[optimizer_state.Loaded] = []
        own: list[bool] = []  # whether it is one of this optimizer's that is not out of date
        weights: dict[Tensor, Tensor] = {}

        def check(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
            try:
                optimizer_state.check_form(state_dict)
                own.append(self._weights.live.has(state_dict["state"]))
                names = self._attachments.names(self.param_groups)
                state_dict = matching.regrouped(state_dict, self.param_groups, names)
                nested: dict[str, Any] = {}
                if self._mover is not None:
                    self._check_mover_for_load()
                    state_dict, nested = self._mover.separated(state_dict)
                options = optimizer_state.class_defaults(type(self), self.defaults)
                found = optimizer_state.decode(
                    state_dict, self.param_groups, options, self._rule, self._check, self.state_precision
                )
                if self.training and not found.training and not self._attachments.models:
                    optimizer_state.refuse_one_memory(state_dict, self.param_groups)
                loaded.append(found)
                if self._mover is not None:
                    self._mover.load(nested, self._params())
            except torch.OutOfMemoryError:
                raise
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # of another form
                raise ValueError(f"the state dict is damaged: {type(error).__name__}: {error}") from error
            self._settle()
            reconciliation = self._weights.reconciliation
            weights.update(reconciliation.weights_before_switches(self._entries(), self._weights.at_x))
            return {"state": {}, "param_groups": loaded[0].param_groups}  # torch would cast the buffers

        def restore(_: torch.optim.Optimizer) -> None:
            with Deferred():
                if not own[0]:
                    self._weights.live.outdate()
                self.state.update(loaded[0].state)
                self._stepper = Stepper()
                for group in self.param_groups if self.capturable else ():
                    for param in group["params"][:1]:
                        if isinstance(group["lr"], Tensor):  # as of a file that was read on the CPU
                            group["lr"] = group["lr"].to(param.device)
                    started = [param for param in group["params"] if param in self.state]
                    capture.bring_to_device(group, started, [self.state[param] for param in started])
                self._loaded(loaded[0].training, weights)

        hooks = [
            self.register_load_state_dict_pre_hook(check),  # after the hooks of users, which may adapt the dict
            self.register_load_state_dict_post_hook(restore, prepend=True),  # before theirs
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_mover_for_load(self) -> None:
        """Raise ValueError, as for a state dict that does not fit, where :meth:`_check_mover` raises RuntimeError."""
        try:
            self._check_mover()
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    def _loaded(self, training: bool, weights: dict[Tensor, Tensor]) -> None:
        """A state was loaded that belongs to weights of that mode: to those that are there, or that were before."""
        entries, is_attached = self._entries(), bool(self._attachments.models)
        if self._mover is not None:
            self._mover.reload([entry.param for entry in entries])
        self._weights.reconciliation.adopt(training, entries, weights, is_attached)
        self._weights.note(() if training else self._params())
        self._settle()
        if is_attached:
            self._put(self._attachments.wanted_at_x(self._params()))
        self._note_mode()

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which are attached to nothing; the weights beside them may be x or y."""
        copied = super().__getstate__()
        weights, attachments = self._weights.of_copy(), Attachments()
        attachments.was_copied = self._attachments.was_copied or bool(self._attachments.models)
        if self._attachments.models:
            weights.reconciliation.file_training = self.training
            copied["state"] = self.state.copy()
            for entry in self._entries():
                copied["state"][entry.param] = self._weights.with_gradient_point(entry)
        return copied | {
            "implementation": self.implementation,
            "state_precision": self.state_precision,
            "capturable": self.capturable,
            "_weights": weights,
            "_attachments": attachments,
            "_stepper": Stepper(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._weights.watch()
