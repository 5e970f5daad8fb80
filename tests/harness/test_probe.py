"""One batch through a model when it is built: what its output, its gradient and its state are like."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from aftershock.harness.core.errors import UsageError
from aftershock.harness.models.classifier import Classifier, Normalise
from aftershock.harness.models.probe import Probe, looks_like, probe, probe_images
from aftershock.harness.tracing.logits import as_logits
from aftershock.harness.tracing.recorder import record, survey
from aftershock.harness.tracing.traces import Need
from torch import Tensor, nn

SHAPE = (1, 4, 4)


class Net(nn.Module):
    """A small network whose end, or whole, a test changes."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda z: z, classes: int = 3, scale: float = 4.0) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(8, 16, generator=draws) / 2)
        self.last = nn.Parameter(torch.randn(classes, 8, generator=draws) * scale)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(F.relu(x.flatten(1) @ self.first.T) @ self.last.T)


def classifier(network: nn.Module, classes: int = 3) -> Classifier:
    return Classifier(network, nn.Identity(), SHAPE, classes).eval()


def images() -> Tensor:
    return probe_images(None, SHAPE)


def probed(end: Callable[[Tensor], Any], classes: int = 3, outputs: int = 3) -> Probe:
    return probe(classifier(Net(end, outputs), classes), images())


Outputs = namedtuple("Outputs", "logits aux")


@pytest.mark.parametrize(
    ("wrap", "word"),
    [
        (lambda z: SimpleNamespace(logits=z), "attribute"),
        (lambda z: Outputs(z, z + 1), "attribute"),
        (lambda z: {"aux": z + 1, "logits": z}, "mapping"),
        (lambda z: (z, z + 1), "tuple"),
        (lambda z: [z], "list"),
    ],
)
def test_logits_are_found_in_what_a_network_returns_and_it_is_said(wrap: Callable[[Tensor], Any], word: str) -> None:
    found = probed(wrap)
    assert word in found.taken
    assert [note for note in found.notes if word in note]
    assert found.flags == found.warnings == ()
    assert torch.equal(classifier(Net(wrap))(images()), classifier(Net())(images()))


@pytest.mark.parametrize(
    ("wrap", "word"),
    [
        (lambda z: {"out": z}, "'out'"),
        (lambda z: (), "tuple"),
        (lambda z: None, "NoneType"),
        (lambda z: z.tolist(), "list"),
        (lambda z: z[:, :2], "(18, 2)|(10, 2)"),
        (lambda z: z[:, 0], r"\(n, 3\)"),
        (lambda z: z[:, :, None, None], r"\(n, 3\)"),
        (lambda z: torch.complex(z, z), "complex"),
        (lambda z: z.to_sparse(), "sparse"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(wrap: Callable[[Tensor], Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        probed(wrap)


@pytest.mark.parametrize("end", [lambda z: z, lambda z: z[:, 0], lambda z: (z,)])
def test_one_logit_of_two_classes_becomes_two_that_treat_them_alike(end: Callable[[Tensor], Any]) -> None:
    found = probed(end, 2, 1)
    assert found.single
    assert len(found.notes) >= 1
    model = classifier(Net(end, classes=1), 2)
    x = images()
    z = Net(classes=1)(x)
    torch.testing.assert_close(model(x).softmax(1)[:, 1:], z.sigmoid())
    torch.testing.assert_close(model(x).sum(1), torch.zeros(len(x)))
    torch.testing.assert_close(as_logits(-z, 2), as_logits(z, 2).flip(1))
    x.requires_grad_()
    assert torch.autograd.grad(model(x)[:, 1].sum(), x)[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_logits_of_another_type_are_cast_and_keep_their_gradient(dtype: torch.dtype) -> None:
    found = probed(lambda z: z.to(dtype))
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.gradient
    assert found.flags == ()
    x = images().requires_grad_()
    logits = classifier(Net(lambda z: z.to(dtype)))(x)
    assert logits.dtype == torch.float32
    assert torch.autograd.grad(logits[:, 0].sum(), x)[0].any()


@pytest.mark.parametrize(
    ("end", "looks", "flag"),
    [
        (lambda z: z.softmax(1), "probabilities", "probabilities-for-logits"),
        (lambda z: (z / 50).softmax(1), "probabilities", "probabilities-for-logits"),
        (lambda z: (50 * z).softmax(1), "probabilities", "probabilities-for-logits"),
        (lambda z: 100 * z.softmax(1), "probabilities", "probabilities-for-logits"),
        (lambda z: z.softmax(1).bfloat16(), "probabilities", "probabilities-for-logits"),
        (lambda z: z.softmax(1).half().float(), "probabilities", "probabilities-for-logits"),
        (lambda z: z.double().softmax(1), "probabilities", "probabilities-for-logits"),
        (lambda z: (z.softmax(1),), "probabilities", "probabilities-for-logits"),
        (lambda z: z.log_softmax(1), "log-probabilities", "log-probabilities-for-logits"),
        (lambda z: z.softmax(1).log(), "log-probabilities", "log-probabilities-for-logits"),
        (lambda z: F.one_hot(z.argmax(1), 3), "one-hot", "probabilities-for-logits"),
        (lambda z: F.one_hot(z.argmax(1), 3).float(), "one-hot", "probabilities-for-logits"),
        (lambda z: z.sigmoid(), "between 0 and 1", "probabilities-for-logits"),
        (lambda z: (z / 100).sigmoid(), "between 0 and 1", "probabilities-for-logits"),
    ],
)
def test_probabilities_in_place_of_logits_are_noticed(end: Callable[[Tensor], Any], looks: str, flag: str) -> None:
    found = probed(end)
    assert (found.looks_like, found.flags) == (looks, (flag,))
    assert len(found.warnings) == 1


def test_a_single_probability_of_two_classes_is_noticed() -> None:
    assert probed(lambda z: z.sigmoid(), 2, 1).looks_like == "between 0 and 1"


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z,
        lambda z: z.abs(),
        lambda z: F.relu(z),
        lambda z: z / 1000,
        lambda z: z - z.mean(1, keepdim=True),
        lambda z: z - 100,
        lambda z: z + 100,
        lambda z: 0.3 + z / 1e6,
        lambda z: 1 / 3 + 0.1 * z.sigmoid(),
        lambda z: z / z.norm(dim=1, keepdim=True),
        lambda z: z.softmax(1).logit(eps=1e-4),
        lambda z: torch.zeros_like(z),
        lambda z: torch.full_like(z, 1 / 3),
        lambda z: z * torch.nan,
    ],
)
def test_honest_logits_are_not_taken_for_probabilities(end: Callable[[Tensor], Any]) -> None:
    assert probed(end).looks_like == ""


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_networks_drawn_at_random_raise_no_alarm(classes: int, scale: float) -> None:
    for seed in range(20):
        z = torch.randn(18, classes, generator=torch.Generator().manual_seed(seed)) * scale
        assert looks_like(z) == looks_like(z.abs() * 3) == ""


def test_a_network_that_writes_into_its_input_gets_a_copy() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Any:
            x.sub_(0.5).mul_(2)
            return super().forward(x)

    model, x = classifier(Writes()), images()
    before = x.clone()
    found = probe(model, x)
    assert found.writes_input
    assert found.gradient
    assert found.flags == ()
    assert torch.equal(x, before)
    logits = model(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(logits, classifier(Net())(2 * (x - 0.5)))
    normalised = Classifier(Writes(), Normalise((0.5,), (0.5,)), SHAPE, 3).eval()
    normalised(x.requires_grad_()).sum().backward()
    assert torch.equal(x, before)
    assert x.grad is not None
    assert not probe(classifier(Net()), images()).writes_input


class Ignores(Net):
    """In train mode, whatever is asked."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def train(self, mode: bool = True) -> Ignores:
        super().train(True)
        return self

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.layer(x))


@pytest.mark.parametrize(
    "network",
    [
        Ignores(nn.BatchNorm2d(1)),
        Net(lambda z: z - z.mean(0)),
        Net(lambda z: z / z.std(0, correction=0).clamp_min(1e-3)),
        Net(lambda z: z + 0.1 * z.amax()),
        Net(lambda z: z + torch.arange(len(z))[:, None]),
        Net(lambda z: F.batch_norm(z, None, None, training=True)),
        Net(lambda z: z.cumsum(0)),
        Net(lambda z: z * (1 + (len(z) == 1))),
    ],
    ids=["train mode", "mean", "deviation", "largest", "place", "one image fails", "earlier images", "alone"],
)
def test_answers_that_depend_on_the_batch_are_noticed(network: nn.Module) -> None:
    found = probe(classifier(network), images())
    assert found.flags == ("batch-dependent",)
    assert not found.randomised


def test_batch_norm_that_follows_eval_does_not_depend_on_the_batch_and_keeps_its_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), Net())
    model = classifier(network)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert probe(model, images()).flags == ()
    ignoring = classifier(Ignores(nn.BatchNorm2d(1)))
    kept = ignoring.get_buffer("network.layer.running_mean").clone()
    probe(ignoring, images())
    assert torch.equal(kept, ignoring.get_buffer("network.layer.running_mean"))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_dependence(dtype: torch.dtype) -> None:
    class Autocast(Net):
        def forward(self, x: Tensor) -> Any:
            h = F.linear(x.flatten(1).to(dtype), self.first.to(dtype)).relu()
            return F.linear(h, self.last.to(dtype)).float()

    assert probe(classifier(Autocast()), images()).flags == ()


@pytest.mark.parametrize(
    "end",
    [lambda z: z + torch.randn_like(z), lambda z: F.dropout(z, 0.5, training=True)],
    ids=["noise", "dropout"],
)
def test_answers_that_are_drawn_are_noticed_and_the_global_generator_stays(end: Callable[[Tensor], Any]) -> None:
    state = torch.get_rng_state()
    assert probed(end).flags == ("randomised-model",)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_a_gradient_is_told_from_one_whose_gradient_is_small() -> None:
    assert not probed(lambda z: z.detach()).gradient
    assert not probed(lambda z: z.round()).gradient
    assert not probed(lambda z: torch.from_numpy(z.detach().numpy())).gradient
    assert probed(lambda z: (z / 5).softmax(1)).gradient
    assert probed(lambda z: z * 1e-12).gradient


def test_a_scripted_network_is_refused_with_what_to_do() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU())
    with pytest.raises(UsageError, match="give the original"):
        probe(classifier(torch.jit.trace(inner, images())), images())


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised kernels here")
def test_quantised_activations_are_read_as_numbers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3), nn.ReLU())
    plain = nn.Sequential(torch.ao.quantization.QuantStub(), network, torch.ao.quantization.DeQuantStub()).eval()
    plain.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    prepared = torch.ao.quantization.prepare(plain)
    x = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    prepared(x)
    quantised = classifier(torch.ao.quantization.convert(prepared))
    found = probe(quantised, images())
    assert found.other_state
    assert not found.gradient
    seen = survey(quantised, x)
    assert ([t.shape for t in seen.taps], seen.unclear) == ([(5, 2, 2), (3,)], ())
    codes = record(quantised, x, seen.taps, [Need("pooled"), Need("full"), Need("bits")]).codes
    expected = network[:2](x).mean((2, 3))
    torch.testing.assert_close(codes["pooled:mean"]["network.1.1"], expected, atol=0.02, rtol=0.05)


@pytest.mark.skipif("x86" not in torch.backends.quantized.supported_engines, reason="no quantised kernels here")
def test_a_network_with_packed_weights_is_probed_and_says_that_its_state_is_not_kept() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), {nn.Linear}
    )
    found = probe(classifier(quantised), images())
    assert found.other_state
    assert not found.gradient
    assert found.looks_like == ""
    assert any("factory" in note for note in found.notes)


class SetsItself(Net):
    """Keeps the first batch's mean, as an activation normalisation does, in one of several places."""

    mean: Tensor
    late: Tensor | None

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.ready, self.seen = place, False, dict[str, Any](n=0)
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Any:
        mean = x.flatten(1).mean(0).detach()
        if not self.ready:
            if self.place == "buffer":
                self.mean.copy_(mean)
            elif self.place == "new buffer":
                self.mean = mean
            elif self.place == "late buffer":
                self.late = mean
            elif self.place == "attribute":
                self.kept = mean
            else:
                self.seen["mean"] = mean
            self.ready = True
        others: dict[str, Any] = {"late buffer": self.late, "attribute": getattr(self, "kept", None)}
        held = others.get(self.place, self.mean)
        return super().forward(x.flatten(1) - self.seen.get("mean", held))


@pytest.mark.parametrize("place", ["buffer", "new buffer", "late buffer", "attribute", "entry"])
def test_state_that_the_first_batch_sets_is_noticed_and_put_back(place: str) -> None:
    network = SetsItself(place)
    model = classifier(network)
    mean, seen = network.mean, network.seen
    found = probe(model, images())
    assert found.batch_dependent and "ready" in found.changed_state
    assert not network.ready and network.mean is mean and not mean.any() and network.late is None
    assert network.seen is seen == {"n": 0} and not hasattr(network, "kept")


def test_a_network_that_notes_what_it_has_seen_is_no_other_for_it() -> None:
    class Notes(Net):
        calls, shown = 0, None

        def forward(self, x: Tensor) -> Any:
            self.calls, self.shown = self.calls + 1, x
            return super().forward(x)

    network = Notes()
    found = probe(classifier(network), images())
    assert set(found.changed_state) == {"calls", "shown"} and found.flags == found.warnings == ()
    assert (network.calls, network.shown) == (0, None)
    assert probe(classifier(Net()), images()).changed_state == ()


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (3, 3)])
def test_outputs_that_are_squeezed_are_logits_of_one_image_too(classes: int, outputs: int) -> None:
    found = probed(lambda z: z.squeeze(), classes, outputs)
    assert found.flags == () and found.single == (outputs == 1)
    model = classifier(Net(lambda z: z.squeeze(), outputs), classes)
    torch.testing.assert_close(model(images()[:1]), model(images())[:1])


def one_image_fails(z: Tensor) -> Tensor:
    if len(z) == 1:
        raise RuntimeError("no")
    return z


@pytest.mark.parametrize(
    ("end", "classes", "outputs", "words"),
    [(one_image_fails, 3, 3, "single image: no"), (lambda z: z.mean(), 2, 1, "each image"),
     (lambda z: z.squeeze(), 2, 2, "single image")],
)  # fmt: skip
def test_a_network_that_takes_no_single_image_is_refused(
    end: Callable[[Tensor], Any], classes: int, outputs: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        probed(end, classes, outputs)


@pytest.mark.parametrize(("kind", "name"), [(torch.float16, "float16"), (torch.float64, "float64")])
def test_weights_of_another_type_are_refused_with_what_to_do(kind: torch.dtype, name: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(kind)
    with pytest.raises(UsageError, match=rf"weights are {name}.*\.float\(\)"):
        probe(classifier(network), images())


def test_gradients_through_backward_alone_are_said() -> None:
    def found(reentrant: bool) -> Probe:
        return probed(lambda z: torch.utils.checkpoint.checkpoint(torch.sin, z, use_reentrant=reentrant))

    assert not found(True).gradient and found(True).backward_only
    assert sum("use_reentrant" in note for note in found(True).notes) == len(found(True).notes) == 1
    assert found(False).gradient and not found(False).backward_only


def test_smoothed_probabilities_are_noticed_in_their_logarithm() -> None:
    def smoothed(z: Tensor, scale: float) -> Tensor:
        return ((z / scale).softmax(1) + 0.01).log()

    for scale in (1, 50):
        assert probed(partial(smoothed, scale=scale)).looks_like == "log-probabilities"
    assert probed(lambda z: z - z.logsumexp(1, keepdim=True) + 1).looks_like == ""


def test_another_element_of_the_shape_of_logits_is_said() -> None:
    assert "1 of the others" in probed(lambda z: [z, z + 1]).taken
    assert "others" not in probed(lambda z: (z, z[:, :2])).taken
