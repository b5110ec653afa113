"""BatchNorm's running statistics at the average: those of all the data as one, and nothing else is touched."""

import copy
from collections import UserDict
from typing import Any

import pytest
import torch
from features import compiles_containers_with_untraced_hooks
from problems import copies, equal
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unscheduled import AdamWScheduleFree, ScheduleFreeOptimizer, update_bn

CHANNELS = 3


class Sequential(nn.Sequential):
    """One whose forward pass is not torch's."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


def net(cls: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    torch.manual_seed(3)
    return cls(nn.Linear(4, CHANNELS), nn.Dropout(0.5), nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 1))


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size + 3, 4, generator=generator) for size in range(count)]


def trained(
    attach: bool = False, cls: type[nn.Sequential] = nn.Sequential, **options: Any
) -> tuple[nn.Sequential, ScheduleFreeOptimizer]:
    model = net(cls)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    if attach:
        optimizer.attach(model, **options)
    fit(model, optimizer)
    return model, optimizer


def fit(model: nn.Module, optimizer: ScheduleFreeOptimizer) -> None:
    for batch in batches():
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()


def pooled(model: nn.Sequential, x: dict[str, Tensor], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The statistics of all inputs after the first layer at x, in float64."""
    hidden = torch.cat(inputs).double() @ x["0.weight"].double().T + x["0.bias"].double()
    return hidden.mean(0), hidden.var(0, unbiased=True)


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_they_are_those_of_all_the_data_at_the_average(attach: bool, training: bool, momentum: float | None) -> None:
    model, optimizer = trained(attach)
    model[2].momentum = momentum
    x = {name: optimizer.iterates(param).x for name, param in model.named_parameters()}
    (model if attach else optimizer).train(training)
    weights, rng = copies(model.parameters()), torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    update_bn(batches(), model, optimizer)
    mean, var = pooled(model, x, batches())
    torch.testing.assert_close(model[2].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[2].running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert model[2].num_batches_tracked == 5
    assert model[2].momentum is momentum
    assert optimizer.training is training
    assert equal(model.parameters(), weights)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == flags


def test_the_mode_of_the_optimizer_and_the_batches_do_not_matter() -> None:
    """As of a plain copy at x from one batch; those at y are others."""
    model, optimizer = trained()
    at_y = model[2].running_mean.clone()
    gradients = copies(param.grad for param in model.parameters())
    with optimizer.averaged_parameters():
        plain = copy.deepcopy(model)
    plain[1].eval()
    plain[2].momentum = 1.0
    plain(torch.cat(batches()))
    found = []
    for training in (True, False):
        optimizer.train(training)
        update_bn(batches(), model, optimizer)
        found.append(copies(model.buffers()))
    assert equal(*found)
    assert equal([param.grad for param in model.parameters()], gradients)
    assert not torch.allclose(at_y, model[2].running_mean, atol=1e-2)
    torch.testing.assert_close(model[2].running_mean, plain[2].running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[2].running_var, plain[2].running_var, rtol=1e-5, atol=1e-6)


def test_random_numbers_of_the_loader_and_the_model_are_given_back() -> None:
    class Noisy(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input + torch.randn_like(input))

    model = Noisy(4)
    optimizer = AdamWScheduleFree(model.parameters())
    rng = torch.get_rng_state()
    update_bn(DataLoader(torch.cat(batches()), batch_size=5, shuffle=True), model, optimizer)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d, (6, 3, 7)), (nn.BatchNorm2d, (6, 3, 4, 5)), (nn.BatchNorm3d, (6, 3, 2, 4, 5))],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_every_number_of_dimensions_and_precision(norm: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = norm(CHANNELS).to(dtype)
    data = torch.randn(shape, dtype=dtype) * 3 + 1000
    optimizer = AdamWScheduleFree(model.parameters()).attach(model)
    update_bn([(data[:2], "label"), [data[2:]]], model, optimizer)
    flat = data.double().transpose(0, 1).flatten(1)
    assert model.running_mean.dtype == dtype
    torch.testing.assert_close(model.running_mean, flat.mean(1).to(dtype))
    torch.testing.assert_close(model.running_var, flat.var(1).to(dtype))
    assert optimizer.training


def test_training_goes_on_as_if_they_had_never_been_estimated() -> None:
    (model, optimizer), (reference, plain) = trained(), trained()
    update_bn(batches(), model, optimizer)
    for net, each in ((model, optimizer), (reference, plain)):
        torch.manual_seed(1)
        fit(net, each)
    assert equal(model.parameters(), reference.parameters())


def test_a_loader_that_fails_leaves_all_as_it_was() -> None:
    model, optimizer = trained(attach=True)
    before = copy.deepcopy(dict(model.named_buffers()))
    weights = copies(model.parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        update_bn([*batches(), torch.zeros(2, 9)], model, optimizer)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        update_bn([*batches(), torch.zeros(1, 4)], model, optimizer)
    with pytest.raises(ValueError, match="the loader has no batch"):
        update_bn([], model, optimizer)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert equal(model.parameters(), weights)
    assert model.training
    assert not model[2]._forward_pre_hooks


def test_keyword_batches_and_modules_that_see_no_data() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
            return self.used(first).sum() + self.used(input=second).sum()

    model = Named()
    optimizer = AdamWScheduleFree(model.parameters())
    first, second = torch.randn(5, 2), torch.randn(4, 2)
    update_bn([UserDict(first=first, second=second)], model, optimizer)
    torch.testing.assert_close(model.used.running_var, torch.cat([first, second]).var(0))
    assert torch.equal(model.unused.running_mean, torch.zeros(2))


def test_without_batch_norm_the_loader_is_not_run_and_nothing_is_kept() -> None:
    model = nn.Linear(2, 2)
    optimizer = AdamWScheduleFree(model.parameters()).attach(model, bn_batches=2)
    update_bn((pytest.fail("run") for _ in range(1)), model, optimizer)
    assert not model._forward_pre_hooks


def test_a_batch_without_samples_does_not_count() -> None:
    (model, optimizer), (reference, plain) = trained(), trained()
    empty = torch.zeros(0, 4)
    update_bn([empty, *batches(), empty], model, optimizer)
    update_bn(batches(), reference, plain)
    assert equal(model.buffers(), reference.buffers())


@pytest.mark.parametrize("cls", [nn.Sequential, Sequential])
def test_a_compiled_model_is_not_compiled_anew(cls: type[nn.Sequential]) -> None:
    if cls is nn.Sequential and not compiles_containers_with_untraced_hooks():
        pytest.skip("this torch compiles no container of its own that has a hook that is not to be traced")
    compiled = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    (model, optimizer), (reference, plain) = (trained(attach=True, cls=cls, bn_batches=2) for _ in range(2))
    fast = torch.compile(model, backend=backend, dynamic=True)
    counts = []
    for _ in range(2):
        for net, each in ((fast, optimizer), (reference, plain)):
            net.train()
            torch.manual_seed(1)
            fit(net, each)
            update_bn(batches(), net, each)
            fit(net, each)
            net.eval()
            net(batches()[0])
        counts.append(compiled)
        assert model[2].num_batches_tracked == 2
        torch.testing.assert_close(list(model.buffers()), list(reference.buffers()))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("attach", [True, False])
def test_frozen_ones_keep_theirs(attach: bool) -> None:
    """Those in eval mode while the model, also within a wrapper, is in train mode."""
    torch.manual_seed(3)
    model = nn.Sequential(net(), nn.BatchNorm1d(1))
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1)
    if attach:
        optimizer.attach(model)
    model[0].eval()
    fit(model, optimizer)
    for each in (model, nn.Sequential(model)):
        model[1].running_mean.zero_()
        update_bn(batches(), each, optimizer)
        assert torch.equal(model[0][2].running_mean, torch.zeros(CHANNELS))
        assert model[1].running_mean.any()
    (model if attach else optimizer).eval()
    model.eval()
    wrapper = nn.Sequential(model)
    assert wrapper.training
    update_bn(batches(), wrapper, optimizer)
    assert model[0][2].running_mean.any()  # in eval mode it is not to be seen which are frozen


def test_attached_frozen_ones_are_remembered_in_eval_mode() -> None:
    ends = []
    for evaluate in (True, False):
        model = nn.Sequential(net(), nn.BatchNorm1d(1))
        optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model, bn_batches=2)
        torch.manual_seed(1)
        for _ in range(2):
            model.train()
            model[0][2].eval()
            fit(model, optimizer)
            if evaluate:
                model.eval()
                model(batches()[0])
                assert model[1].num_batches_tracked == 2
                update_bn(batches(), model, optimizer)
                assert model[1].num_batches_tracked == 5
        assert torch.equal(model[0][2].running_mean, torch.zeros(CHANNELS))
        model.train()
        ends.append(copies(model.parameters()))
    assert equal(*ends)


def test_saving_or_copying_a_part_in_eval_mode_is_an_evaluation() -> None:
    for way in (copy.deepcopy, lambda model: model[2:].state_dict(), lambda model: model[2].state_dict()):
        model, _ = trained(attach=True, bn_batches=2)
        model.eval()
        way(model)
        assert model[2].num_batches_tracked == 2


def test_batches_that_do_not_come_by_the_attached_module_are_missed_aloud() -> None:
    """As where a framework calls another method than forward."""
    model = nn.ModuleDict({"net": net()})
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.1).attach(model, bn_batches=2)
    model.eval()
    model.train()
    fit(model["net"], optimizer)
    with pytest.warns(UserWarning, match=r"no training batch was kept .* ModuleDict was never called"):
        model.eval()
    model.train()
    model.eval()
    optimizer.load_state_dict(optimizer.state_dict())
    model.train()
    model.eval()


@pytest.mark.parametrize("forward", [True, False])
def test_attached_they_are_estimated_before_the_next_evaluation(forward: bool) -> None:
    """By a forward pass in eval mode or by saving there; from the last two batches, once."""
    model, optimizer = trained(attach=True, bn_batches=2)
    model.eval()
    x = {name: param.detach().clone() for name, param in model.named_parameters()}
    with torch.inference_mode():
        mean, var = pooled(model, x, batches()[-2:])
        saved = model.state_dict() if not forward else (model(batches()[0]), model.state_dict())[1]
    torch.testing.assert_close(saved["2.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(saved["2.running_var"].double(), var, rtol=1e-5, atol=1e-6)
    model[2].running_mean.zero_()
    model(batches()[0])
    assert torch.equal(model[2].running_mean, torch.zeros(CHANNELS))
    model.train()
    torch.manual_seed(1)
    fit(model, optimizer)
    plain, reference = trained()
    torch.manual_seed(1)
    fit(plain, reference)
    assert equal(model.parameters(), plain.parameters())
    assert not copy.deepcopy(model)._forward_pre_hooks
    optimizer.detach()
    assert not model._forward_pre_hooks
    assert vars(model).keys() == vars(plain).keys()


def test_those_of_a_loader_stay_until_training_goes_on() -> None:
    (model, optimizer), (reference, plain) = trained(attach=True, bn_batches=2), trained()
    update_bn(batches(), nn.Sequential(model), optimizer)
    update_bn(batches(), reference, plain)
    model.eval()
    model(batches()[0])
    assert equal(model.buffers(), reference.buffers())
    model.train()
    fit(model, optimizer)
    model.eval()
    model(batches()[0])
    assert model[2].num_batches_tracked == 2


def test_after_a_failure_they_are_still_to_be_estimated() -> None:
    model, optimizer = trained(attach=True, bn_batches=2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        update_bn([torch.zeros(2, 9)], model, optimizer)
    model.eval()
    model(batches()[0])
    assert model[2].num_batches_tracked == 2


def test_two_optimizers_of_one_model() -> None:
    model, reference = net(), net()
    parts = [AdamWScheduleFree(part.parameters(), lr=0.1).attach(model, bn_batches=2) for part in model[::3]]
    whole = [AdamWScheduleFree(reference[::3].parameters(), lr=0.1).attach(reference, bn_batches=2)]
    for each, optimizers in ((model, parts), (reference, whole)):
        torch.manual_seed(1)
        for batch in batches():
            each.zero_grad()
            each(batch).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
        each.eval()
        each(batches()[0])
    assert equal(model.buffers(), reference.buffers())
    assert model[2].num_batches_tracked == 2


def test_inputs_are_kept_without_their_graph() -> None:
    model = net()
    AdamWScheduleFree(model.parameters()).attach(model, bn_batches=2)
    inputs = (torch.ones(3, 4, requires_grad=True) * 2.0,)
    model(*inputs)
    (entry,) = model._unscheduled_attachments[0]._entries.values()
    ((kept,), _) = entry.recent._inputs[0]
    assert not kept.requires_grad
    assert kept.data_ptr() == inputs[0].data_ptr()


def test_a_number_of_batches_that_cannot_be() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"bn_batches = -1 is no integer >= 0"):
        AdamWScheduleFree(model.parameters()).attach(model, bn_batches=-1)
    assert type(model) is nn.Sequential


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
@pytest.mark.parametrize("attach", [True, False])
def test_batches_are_moved_to_a_device_as_torch_moves_them(device: Any, attach: bool) -> None:
    model, optimizer = trained(attach)
    update_bn(batches(), model, optimizer)
    expected = copy.deepcopy(model[2].state_dict())
    moved: list[Any] = []

    class Moving(Tensor):
        def to(self, *args: Any, **kwargs: Any) -> Any:
            moved.append(args[0])
            return self.as_subclass(Tensor)

    update_bn([(batch.as_subclass(Moving), None) for batch in batches()], model, optimizer, device)
    assert moved == [torch.device("cpu")] * len(batches())
    assert all(torch.equal(value, expected[name]) for name, value in model[2].state_dict().items())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        update_bn(batches(), model, optimizer, device="meta")
    assert all(torch.equal(value, expected[name]) for name, value in model[2].state_dict().items())


def test_a_model_without_parameters() -> None:
    _, optimizer = trained()
    model = nn.BatchNorm1d(4, affine=False)
    update_bn(batches(), model, optimizer)
    assert model.running_mean is not None
    torch.testing.assert_close(model.running_mean, torch.cat(batches()).mean(0))


@pytest.mark.parametrize("given", [torch.device("cpu"), "cuda", None, 0], ids=str)
def test_a_device_in_place_of_the_optimizer(given: Any) -> None:
    model, _ = trained()
    with pytest.raises(TypeError, match=r"^optimizer = .* is no schedule-free optimizer: .*a device comes after it"):
        update_bn(batches(), model, given)


def test_arguments_that_are_none() -> None:
    model, optimizer = trained()
    before = copy.deepcopy(model.state_dict())
    swapped: Any = (
        (
            model,
            batches(),
            optimizer,
            r"model = list\(\.\.\.\) is no torch\.nn\.Module: the order is update_bn\(loader, model,",
        ),
        (batches(), optimizer, model, r"model = AdamWScheduleFree\(\.\.\.\) is no torch\.nn\.Module: give the model"),
        (batches(), "model", optimizer, r"model = str\(\.\.\.\) is no torch\.nn\.Module: give the model"),
        (model, model, optimizer, r"loader = Sequential\(\.\.\.\) gives no batches: give a DataLoader"),
        (None, model, optimizer, r"loader = NoneType\(\.\.\.\) gives no batches"),
        ({"a": batches()}, model, optimizer, r"loader = dict\(\.\.\.\) gives no batches"),
        (
            batches(),
            model,
            torch.optim.SGD(model.parameters()),
            r"optimizer = SGD\(\.\.\.\) is no schedule-free optimizer",
        ),
    )
    for loader, its_model, its_optimizer, match in swapped:
        with pytest.raises(TypeError, match=f"^{match}"):
            update_bn(loader, its_model, its_optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
