"""Channels-last activations: however a network is written, maps are its channels, and its codes are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from aftershock.analyses.cladec.networks import changed_logits, encode
from aftershock.harness.core.model_state import untouched
from aftershock.harness.tracing.recorder import Survey, discover, live_trace, record, survey
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Need, TapInfo, pool
from torch import Tensor, nn

# As many channels as rows and columns: sizes tell nothing.
SIDE = 6
NEEDS = (Need("bits"), Need("pooled"), Need("pooled", statistic="std"), Need("full", units=40))


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


class Spelt(nn.Module):
    """One network; ``hidden`` spells its middle: (n, 6, 6, 6) and a weight (6, 6) to an activation of any layout."""

    def __init__(self, hidden: Callable[[Tensor, Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.stem = nn.Parameter(torch.randn(SIDE, 3, 3, 3, generator=draws) / 3)
        self.weight = nn.Parameter(torch.randn(SIDE, SIDE, generator=draws) / 2)
        self.head = nn.Parameter(torch.randn(4, SIDE, generator=draws))
        self.hidden, self.back = hidden, back

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.stem, padding=1)
        return F.linear(self.back(F.relu(self.hidden(x, self.weight))).mean((2, 3)), self.head)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def same(x: Tensor) -> Tensor:
    return x


def convolved(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w[:, :, None, None])


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def windows(x: Tensor, w: Tensor) -> Tensor:
    n, c, h, wide = x.shape
    parts = x.permute(0, 2, 3, 1).view(n, h // 3, 3, wide // 3, 3, c).transpose(2, 3).reshape(-1, 9, c)
    parts = F.linear(parts, w).view(n, h // 3, wide // 3, 3, 3, -1)
    return parts.permute(0, 1, 3, 2, 4, 5).reshape(n, h, wide, -1)


def normalised(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(F.layer_norm(x.permute(0, 2, 3, 1), (SIDE,)), w)


def into(x: Tensor, w: Tensor) -> Tensor:
    return torch.matmul(x.movedim(1, -1), w.T, out=x.new_empty(len(x), SIDE, SIDE, SIDE))


def filled(x: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(len(x), SIDE, SIDE, SIDE)
    out[..., :2] = F.linear(x.permute(0, 2, 3, 1), w[:2])
    out[..., 2:] = F.linear(x.permute(0, 2, 3, 1), w[2:])
    return out


@torch.inference_mode()
def served(x: Tensor, w: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) @ w.T


# Each gives the activations of `convolved` in a layout of its own.
SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda x, w: F.linear(x.permute(0, 2, 3, 1), w), first),
    "matmul": (lambda x, w: x.movedim(1, -1) @ w.T, first),
    "einsum, last": (lambda x, w: torch.einsum("nchw,oc->nhwo", x, w), first),
    "einsum, first": (lambda x, w: torch.einsum("nchw,oc->nohw", x, w), same),
    "tensordot": (lambda x, w: torch.tensordot(x, w, ([1], [1])), first),
    "weights on the left": (lambda x, w: (w @ x.flatten(2)).unflatten(2, (SIDE, SIDE)), same),
    "rows of pixels": (lambda x, w: F.linear(x.permute(0, 2, 3, 1).reshape(-1, 6), w).view(-1, 6, 6, 6), first),
    "transposed twice": (lambda x, w: F.linear(x.transpose(1, 3), w), lambda x: x.transpose(1, 3)),
    "tokens folded": (lambda x, w: F.linear(tokens(x), w).unflatten(1, (SIDE, SIDE)), first),
    "in the middle": (lambda x, w: F.linear(x.permute(0, 2, 3, 1), w).permute(0, 1, 3, 2), lambda x: x.transpose(1, 2)),
    "memory format": (lambda x, w: convolved(x.to(memory_format=torch.channels_last), w), same),
    "permuted after": (lambda x, w: convolved(x, w).permute(0, 2, 3, 1).contiguous(), first),
    "windows": (windows, first),
    "in place": (lambda x, w: F.linear(x.permute(0, 2, 3, 1), w).mul_(1.0).add_(torch.zeros(6)), first),
    "halves": (lambda x, w: torch.cat(F.linear(x.permute(0, 2, 3, 1), w).chunk(2, -1), -1), first),
    "stacked": (lambda x, w: torch.stack([F.linear(x.permute(0, 2, 3, 1), w), x.permute(0, 2, 3, 1)])[0], first),
    "into": (into, first),
    "filled": (filled, first),
    "inference mode": (served, first),
}  # fmt: skip


def spelt(name: str) -> nn.Module:
    return Spelt(*SPELLINGS[name]).eval()


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_layer_has_the_same_codes(name: str) -> None:
    plain, other = Spelt(convolved, same).eval(), spelt(name)
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(other(x), plain(x), atol=1e-5, rtol=1e-5)
        found = survey(other, x)
        assert found.unclear == ()
        assert [t.shape for t in found.taps] == [(SIDE, SIDE, SIDE)]
        expected, seen = (record(m, x, discover(m, x), NEEDS).codes for m in (plain, other))
    for code, taps in expected.items():
        # The order of units follows that of rows and columns, which this one exchanges.
        for tap, rows in taps.items() if name != "transposed twice" or code.startswith("pooled") else ():
            torch.testing.assert_close(seen[code][tap], rows, atol=1e-5, rtol=1e-5)


def test_live_activations_have_the_layout_of_the_stored_ones_and_their_gradient() -> None:
    plain, other = Spelt(convolved, same).eval(), spelt("linear")
    gradients = []
    for model in (plain, other):
        x = images().requires_grad_()
        live = live_trace(model, x, discover(model, x.detach()), NEEDS)
        (tap,) = live.tap_names("all")
        for values in (live.activations[tap], live.preactivations[tap]):
            assert values.shape == (5, SIDE, SIDE, SIDE)
        loss = live.pooled(tap)[:, 2].sum() + live.full(tap)[:, :7].square().sum() + live.preactivation(tap)[:, 9].sum()
        gradients.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*gradients)


def test_a_changed_activation_goes_back_in_the_layout_of_the_network() -> None:
    plain, other = Spelt(convolved, same).eval(), spelt("linear")

    def drop(activation: Tensor) -> Tensor:
        activation[:, 1] = 0
        return activation

    found = []
    for model in (plain, other):
        own = TracedModel(model, discover(model, images()))
        (tap,) = own.taps
        found.append((encode(own, images(), [tap.name])[tap.name], changed_logits(own, images(), tap.name, drop)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_swin_and_convnext_are_pooled_over_space(name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, num_classes=4).eval()
    x = torch.rand(2, 3, 32, 32)
    found = survey(model, x)
    wide = {name: m.out_features for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert found.unclear == found.left_out == ()
    for tap in found.taps:
        before = f"{tap.name.rpartition('.')[0]}.{int(tap.name.rpartition('.')[2]) - 1}"
        assert (tap.shape[0], tap.channel_axis) == (wide[before], 3)
    kept: dict[str, Tensor] = {}
    names = {m: n for n, m in model.named_modules()}
    hooks = [
        m.register_forward_hook(lambda m, _, out: kept.update({names[m]: out}))
        for m in model.modules()
        if isinstance(m, nn.GELU)
    ]
    with untouched(model), torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    pooled = record(model, x, found.taps, [Need("pooled")]).codes["pooled:mean"]
    for tap in found.taps:
        torch.testing.assert_close(pooled[tap.name], kept[tap.name].mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_tokens_keep_their_features_and_maps_of_one_dimension_become_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mlp = nn.Conv1d(3, 5, 3), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x.flatten(2)))
            return F.gelu(self.mlp(x.transpose(1, 2))).mean(1)

    model = Tokens().eval()
    maps, tokens = discover(model, images())
    assert (maps.shape, tokens.shape) == ((34, 5), (34, 7))
    x = images()
    with torch.no_grad():
        first = F.relu(model.conv(x.flatten(2)))
        found = record(model, x, (maps, tokens), [Need("pooled")]).codes["pooled:mean"]
        torch.testing.assert_close(found[maps.name], first.mean(2))
        torch.testing.assert_close(found[tokens.name], F.gelu(model.mlp(first.transpose(1, 2))).mean(1))


def test_what_cannot_be_told_is_said_and_read_as_channels_first() -> None:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.from_numpy(x.numpy().transpose(0, 2, 3, 1).copy())).mean((1, 2))

    found = survey(Opaque(), images())
    assert (found.taps[0].shape, found.taps[0].channel_axis) == ((SIDE, SIDE, 3), None)
    assert found.unclear == (found.taps[0].name,)


def test_calls_without_a_row_for_each_image_are_left_out() -> None:
    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mlp, self.head = nn.Parameter(torch.rand(1, 6)), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            bias = F.relu(self.mlp(self.table))
            return self.head(torch.relu(x.mean((1, 2)) + bias))

    model = Bias().eval()
    found = survey(model, images(1))
    assert ([t.name for t in found.taps], found.left_out) == (["relu:2"], ("relu",))
    for count in (1, 5):
        codes = record(model, images(count), found.taps, [Need("full")]).codes["full"]
        assert list(codes) == ["relu:2"]
        assert len(codes["relu:2"]) == count


def test_a_tap_is_arranged_and_put_back() -> None:
    for shape, axis, arranged in (
        ((2, 5, 6, 7), 3, (2, 7, 5, 6)),
        ((2, 5, 6, 7), 2, (2, 6, 5, 7)),
        ((2, 5, 6, 7), 1, (2, 5, 6, 7)),
        ((2, 5, 6, 7), None, (2, 5, 6, 7)),
        ((2, 5, 6), 1, (2, 6, 5)),
        ((2, 5, 6), None, (2, 5, 6)),
        ((2, 4, 5, 6, 7), 4, (2, 7, 4, 5, 6)),
        ((2, 5), 1, (2, 5)),
    ):
        values, tap = torch.rand(shape), TapInfo("a", "relu", arranged[1:], axis)
        assert tap.arranged(values).shape == arranged
        assert torch.equal(tap.as_computed(tap.arranged(values)), values)
        if axis is not None and len(shape) > 2:
            places = [d for d in range(1, len(shape)) if d != axis]
            torch.testing.assert_close(pool(tap.arranged(values), "mean"), values.mean(places))


def test_a_survey_is_a_value() -> None:
    model = spelt("linear")
    assert survey(model, images()) == Survey((TapInfo("relu", "relu", (SIDE, SIDE, SIDE), 3),))
