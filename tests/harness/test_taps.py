"""Every way of writing a ReLU is a tap, and a tapped model comes out as it went in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing import bits
from aftershock.harness.tracing.recorder import Overwritten, discover, input_gradient, live_trace, record
from aftershock.harness.tracing.taps import TapCall, Taps
from aftershock.harness.tracing.traces import Need, pool, sampled_units
from torch import Tensor, nn

X = torch.linspace(-2, 2, 24).reshape(2, 12)

WAYS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "nn.ReLU6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "F.hardtanh(0, 6)": lambda x: F.hardtanh(x, 0.0, 6.0),
    "F.threshold(0, 0)": lambda x: F.threshold(x, 0.0, 0.0),
    "nn.LeakyReLU": nn.LeakyReLU(),
    "nn.LeakyReLU(inplace)": nn.LeakyReLU(inplace=True),
    "nn.LeakyReLU(negative slope < 0)": nn.LeakyReLU(-0.5),
    "nn.PReLU": nn.PReLU(init=-1.0),
    "nn.GELU": nn.GELU(),
    "nn.SiLU": nn.SiLU(),
    "nn.SiLU(inplace)": nn.SiLU(inplace=True),
    "nn.ELU": nn.ELU(),
    "nn.Mish": nn.Mish(),
    "nn.Hardswish": nn.Hardswish(),
}


class Calls(nn.Module):
    """A linear layer, then one call that may be a tap."""

    def __init__(self, call: nn.Module | object) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.act = call if isinstance(call, nn.Module) else nn.Identity()
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.act(h) if isinstance(self._call, nn.Module) else self._call(h)  # type: ignore[operator]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_writing_an_activation_is_one_tap_with_the_sign_of_its_input(way: str) -> None:
    model = Calls(WAYS[way]).eval()
    (tap,) = discover(model, X)
    assert tap.shape == (12,)
    recording = record(model, X, [tap], [Need("bits"), Need("full")])
    before = model.first(X)
    assert torch.equal(bits.unpack(recording.codes["bits"][tap.name], 12), before > 0)
    assert torch.allclose(recording.codes["full"][tap.name], model(X))


@pytest.mark.parametrize(
    "call", [torch.tanh, torch.sigmoid, lambda x: x.clamp(min=0), lambda x: F.hardtanh(x), lambda x: x * (x > 0)]
)
def test_what_is_no_relu_call_is_no_tap_and_a_model_without_taps_is_refused(call: object) -> None:
    with pytest.raises(UsageError, match="tap_modules"):
        discover(Calls(call), X)


def test_a_named_module_is_a_tap_where_calls_cannot_be_seen() -> None:
    model = Calls(lambda x: x.clamp(min=0))
    taps = discover(model, X, modules=["first"])
    assert [(t.name, t.kind) for t in taps] == [("first", "module")]
    recording = record(model, X, taps, [Need("bits")], modules=["first"])
    assert torch.equal(bits.unpack(recording.codes["bits"]["first"], 12), model.first(X) > 0)
    with pytest.raises(UsageError, match="no module 'frist'"):
        discover(model, X, modules=["frist"])


def test_one_module_used_twice_and_functional_calls_get_ordinals_in_execution_order() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.relu(self.relu(x) - 0.1) + 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.relu(x))

    names = [t.name for t in discover(Net(), X)]
    assert names[:3] == ["relu", "layer.0.relu", "layer.0.relu:2"]
    assert len(set(names)) == 4
    assert [t.name for t in discover(Net(), X)] == names


def test_torchvision_resnet18_shares_its_relu_modules() -> None:
    from torchvision.models import resnet18

    model = resnet18(weights=None).eval()
    names = [t.name for t in discover(model, torch.rand(1, 3, 64, 64))]
    assert len(names) == len(set(names)) == 17
    assert names[:3] == ["relu", "layer1.0.relu", "layer1.0.relu:2"]


def test_the_cifar_resnet20_has_nineteen_functional_taps() -> None:
    from aftershock.harness.models.architectures import resnet20

    taps = discover(resnet20((3, 32, 32), 10), torch.rand(1, 3, 32, 32))
    assert [t.name for t in taps][:3] == ["relu", "layer1.0.relu", "layer1.0.relu:2"]
    assert len(taps) == 19
    assert sum(t.units for t in taps) == 188_416


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_shows_the_same_taps(backend: str) -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4), nn.GELU()).eval()
    plain = record(model, X, discover(model, X), [Need("full")])
    compiled = torch.compile(model, backend=backend)
    assert isinstance(compiled, nn.Module)
    if not hasattr(torch.compiler, "set_stance"):
        with pytest.raises(UsageError, match=r"before torch 2\.6: give the model as it was"):
            discover(compiled, X)
        return
    taps = discover(compiled, X)
    assert [t.name for t in taps] == ["1", "3"]
    seen = record(compiled, X, taps, [Need("full")])
    for name in ("1", "3"):
        assert torch.allclose(seen.codes["full"][name], plain.codes["full"][name], atol=1e-6)
    torch._dynamo.reset()


class Moody(nn.Module):
    """Dropout, batch norm, and a forward that raises on demand half way."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.angry = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.net[:3](x)
        if self.angry:
            raise RuntimeError("half way")
        return self.net[3:](h)


def _state(model: nn.Module) -> list[object]:
    modes = [m.training for m in model.modules()]
    grads = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [modes, str(grads), hooks, {k: v.clone().tolist() for k, v in model.state_dict().items()}]


@pytest.mark.parametrize("angry", [False, True])
def test_a_model_in_train_mode_is_read_in_eval_mode_and_put_back_also_when_it_raises(angry: bool) -> None:
    model = Moody()
    taps = discover(model, X)
    model.train()
    model.net[3].eval()
    weight = model.get_parameter("net.0.weight")
    weight.grad = torch.ones_like(weight)
    expected = record(model, X, taps, [Need("bits")]).logits
    before, rng = _state(model), torch.get_rng_state()
    model.angry = angry
    if angry:
        with pytest.raises(RuntimeError, match="half way"):
            record(model, X, taps, [Need("bits")])
    else:
        assert torch.equal(record(model, X, taps, [Need("bits")]).logits, expected)
    assert _state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    model.angry = False
    assert torch.equal(record(model, X, taps, [Need("bits")]).logits, expected)


def test_a_model_whose_calls_are_hidden_is_refused_with_what_to_do() -> None:
    inner = nn.Sequential(nn.Linear(12, 4), nn.ReLU())
    with pytest.raises(UsageError, match="give the model inside it"):
        discover(nn.DataParallel(inner), X)
    with pytest.raises(UsageError, match="scripted"):
        discover(nn.Sequential(torch.jit.trace(inner, X)), X)


def test_a_path_that_depends_on_the_input_is_refused() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.relu(x)) if x.mean() > 0 else F.relu(x)

    model = Fickle()
    taps = discover(model, X.abs())
    with pytest.raises(UsageError, match="another path"):
        record(model, -X.abs(), taps, [Need("bits")])


def test_codes_of_one_pass_equal_those_of_passes_of_their_own_whatever_the_batch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 10), nn.ReLU()).eval()
    images = torch.rand(37, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    taps = discover(model, images[:1])
    needs = [Need("bits"), Need("pooled"), Need("pooled", statistic="max"), Need("full", units=20)]
    together = record(model, images, taps, needs)
    for need in needs:
        alone = record(model, images, taps, [need], batch=5)
        for name, value in together.codes[need.code].items():
            assert torch.allclose(alone.codes[need.code][name].float(), value.float(), atol=1e-6)
    first = model[1](model[0](images))
    assert torch.allclose(together.codes["pooled:mean"]["1"], first.mean((2, 3)), atol=1e-6)
    assert torch.allclose(together.codes["pooled:max"]["1"], first.amax((2, 3)), atol=1e-6)
    kept = sampled_units(taps[0], 20)
    assert kept is not None and len(kept) == 20
    assert torch.allclose(together.codes["full:20"]["1"], first.flatten(1)[:, kept], atol=1e-6)


def test_only_the_selected_taps_are_recorded() -> None:
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    taps = discover(model, X)
    recording = record(model, X, taps, [Need("bits", "last:1"), Need("bits", ("1",)), Need("full", "first:1")])
    assert {c: list(t) for c, t in recording.codes.items()} == {"bits": ["1", "5"], "full": ["1"]}
    with pytest.raises(UsageError, match="no tap 'relu'"):
        record(model, X, taps, [Need("bits", "relu")])


@pytest.mark.parametrize("inplace", [False, True])
def test_live_taps_keep_the_preactivation_and_its_gradient_also_in_place(inplace: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace), nn.Linear(8, 3), nn.ReLU(inplace)).eval()
    taps = discover(model, X)
    x = X.clone().requires_grad_(True)
    live = live_trace(model, x, taps, [Need("bits"), Need("full")])
    relaxed = torch.stack([torch.sigmoid(live.preactivation(t) / 0.1).sum() for t in live.tap_names("all")]).sum()
    (gradient,) = torch.autograd.grad(relaxed, x)
    y = X.clone().requires_grad_(True)
    first = F.linear(y, model.get_parameter("0.weight"), model.get_parameter("0.bias"))
    second = F.linear(F.relu(first), model.get_parameter("2.weight"), model.get_parameter("2.bias"))
    (expected,) = torch.autograd.grad(torch.sigmoid(first / 0.1).sum() + torch.sigmoid(second / 0.1).sum(), y)
    assert torch.allclose(live.preactivation("1"), first) and torch.allclose(live.full("1"), F.relu(first))
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_activations_changed_in_place_after_the_call_are_read_as_they_were() -> None:
    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = F.relu(x)
            out += 5.0
            return out

    model = Residual()
    taps = discover(model, X)
    assert torch.equal(record(model, X, taps, [Need("full")]).codes["full"]["relu"], F.relu(X))
    assert torch.equal(live_trace(model, X, taps, [Need("full")]).activations["relu"], F.relu(X))


def test_a_surrogate_outside_the_mode_makes_no_taps() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.Linear(12, 4), nn.ReLU())

    def visit(call: TapCall) -> None:
        seen.append(call.name)
        F.relu(call.activation)

    with Taps(model, visit):
        model(X)
    assert seen == ["1"]


def test_input_gradients_are_those_of_autograd_and_leave_parameters_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images = X.reshape(2, 1, 3, 4)
    found = input_gradient(model, images, lambda logits: logits[:, 1])
    assert torch.allclose(found.flatten(1), model.get_parameter("1.weight")[1].expand(2, 12))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_pooling_of_maps_tokens_and_vectors() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(pool(maps, "mean"), maps.mean((2, 3)))
    assert torch.allclose(pool(maps, "std"), maps.flatten(2).std(2, correction=0))
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(pool(tokens, "max"), tokens.amax(1))
    assert torch.equal(pool(-tokens[:, 0], "mean"), -tokens[:, 0])


IMAGES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


class Shortcuts(nn.Module):
    """In place and not, with an activation that is overwritten after it was read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.relu(self.first(x))
        two = F.silu(self.second(one))
        two += one
        logits: Tensor = self.head(two.mean((2, 3)))
        return logits


@pytest.fixture
def shortcuts() -> Shortcuts:
    return Shortcuts().eval().requires_grad_(False)


def test_a_live_trace_holds_the_taps_that_are_named(shortcuts: Shortcuts) -> None:
    taps = discover(shortcuts, IMAGES)
    names = [t.name for t in taps]
    assert len(names) == 2
    for needs, also, held in (
        ([], (), set()),
        ([Need("pooled", taps="last:1")], (), {names[1]}),
        ([Need("bits", taps="last:1")], names[:1], set(names)),
    ):
        live = live_trace(shortcuts, IMAGES, taps, needs, also=also)
        assert set(live.activations) == set(live.preactivations) == held


@pytest.mark.parametrize("compiled", [False, True])
def test_a_live_trace_shows_what_was_there_and_its_gradients_are_those_of_copies(
    shortcuts: Shortcuts, compiled: bool
) -> None:
    taps = discover(shortcuts, IMAGES)
    model: nn.Module = torch.compile(shortcuts, backend="aot_eager") if compiled else shortcuts  # type: ignore[assignment]
    second = taps[1].name

    def look(overwritten: Overwritten | None) -> list[Tensor]:
        x = IMAGES.clone().requires_grad_()
        live = live_trace(model, x, taps, [Need("full")], root=shortcuts, overwritten=overwritten)
        terms = [value.sin().sum() + value.square().mean() for value in live.activations.values()]
        terms += [value.tanh().sum() for value in live.preactivations.values()]
        (gradient,) = torch.autograd.grad(torch.stack([*terms, live.logits[:, 0].sum()]).sum(), x)
        return [*live.activations.values(), *live.preactivations.values(), live.logits, gradient]

    with torch.no_grad():
        inner = shortcuts.first(IMAGES)
        outer = shortcuts.second(F.relu(inner))
    overwritten = Overwritten()
    found = look(overwritten)
    assert overwritten.taps == {taps[0].name: False, second: True}
    for one, other in zip(found, (F.relu(inner), F.silu(outer), inner, outer), strict=False):
        assert torch.equal(one, other)
    # With and without copies: to the bit.
    for again in (look(overwritten), look(None)):
        for one, other in zip(found, again, strict=True):
            assert torch.equal(one, other)


def test_a_model_that_begins_to_overwrite_is_seen_and_copied(shortcuts: Shortcuts) -> None:
    taps = discover(shortcuts, IMAGES)
    overwritten = Overwritten({tap.name: False for tap in taps})
    live = live_trace(shortcuts, IMAGES, taps, [Need("full")], overwritten=overwritten)
    with torch.no_grad():
        assert torch.equal(live.activations[taps[1].name], F.silu(shortcuts.second(F.relu(shortcuts.first(IMAGES)))))
    assert overwritten.taps == {taps[0].name: False, taps[1].name: True}
