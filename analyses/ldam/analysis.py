"""LDAM: Langevin dynamics activation maximisation, with a discriminator that keeps it near the data (Jiang et al.)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.model_state import one_thread, untouched
from ...harness.core.parameters import grouped
from ...harness.core.ranges import Count, Natural, NotNegative, Positive
from ...harness.tracing.traces import Need, TapInfo
from ..base import Analysis, AnalysisInfo
from ..common.inputs import AnalysisInput
from ..findings import Findings
from .attacked import readings
from .averaging import case_study
from .diagnostics import validate_chains
from .discriminator import TrainedDiscriminator, train_discriminator
from .energy import Activations, Energy, Scale, Target, ascend, parse
from .judge import train_judge
from .measured import PLAIN, RANDOM, REFERENCE, SMOOTH, TOP, Group, Learning, Sampled, langevin_name
from .metrics import Features, Metrics
from .parameters import Ascent, Averaging, DiscriminatorTraining, Sampler
from .report.figures import figures
from .report.tables import tables
from .report.text import claims
from .sampler import langevin
from .space import Gaussian, Pixels

# Below so many pixels several threads only wait for each other.
_SMALL = 256
_JITTER = 1


class Ldam(Analysis[Sampled]):
    """What excites a unit? Samples of images by Langevin dynamics, from noise-like to natural by one dial.

    Chains sample p(w) ∝ exp(−E(x(w)) / T), a density in their coordinates w (off T = 1, other coordinates would make it
    another one), with E(x) = R(x) − pull · z(x) + weight · softplus(−d(x)) (+ smooth · TV(x)): z
    is the target's activation in standard deviations of data, d the logit of a discriminator that was trained on data
    against the chains' samples and is frozen before the samples are drawn, its weight the dial. R is the reference
    measure: images with the data's mean and covariance (``gaussian``: logistic function of a normal vector, in whose
    whitened coordinates the chains run), or all images alike (``pixels``: reflected at 0 and 1).

    Beside it: plain activation maximisation (no noise, no prior), the same with total variation and jitter, the
    reference measure alone (at T as well), the fit images with the highest activation, and random held-out ones; real
    images are first brought to what the coordinates can express. Realism is judged by
    distances to held-out images in the features of an independently trained classifier, which also says whether it
    sees the class.

    Two questions more. Parameter averaging: copies of the network after some SGD at a constant rate, last weights
    against averaged ones, sampled from the same starts with the same noise. Attacks: does the discriminator, which
    never saw one, tell successes from clean images and from noise of the same size?

    Cost: gradients with respect to the image, (targets x weights x chains) x (rounds x moves + steps), and once more
    about half of it for the case study with its ``averaging.steps`` x 64 images of training.

    Args:
        targets: ``logit:CLASS`` (number or name), ``channel:TAP:NUMBER``, ``unit:TAP:NUMBER``; by default two logits
            and the most varied channel of the last tap with maps.
        weights: of the discriminator.
        temperature: T.
        pull: of the activation.
        smooth: of the total variation.
        images: fit images at most.
        test_images: evaluate images at most.
        judge_epochs: of the independent classifier.
        attacked: images of each kind that the discriminator is asked about, at most; 0 for none, 30 for a number.
        gallery: columns of the galleries, at most.
        sampler: how chains sample.
        discriminator: how the discriminator is trained.
        ascent: plain activation maximisation.
        averaging: the case study of averaged weights.

    Raises:
        UsageError: for a value out of range.
    """

    info = AnalysisInfo(
        "Langevin dynamics activation maximisation",
        "B. Jiang, D. M. Chan, T. Zhang, J. F. Canny (2018): Diagnostic Visualization for Deep Neural Networks Using "
        "Stochastic Gradient Langevin Dynamics (arXiv 1812.04604)",
        "samples images that excite a unit, kept near the data by a discriminator; what it makes of attacks",
    )
    reads_perturbed = True

    def __init__(
        self,
        targets: list[str] | None = None,
        weights: list[float] | None = None,
        temperature: Positive = 0.3,
        pull: Positive = 10.0,
        smooth: NotNegative = 0.0,
        images: Count = 2000,
        test_images: Count = 500,
        judge_epochs: Count = 5,
        attacked: Natural = 200,
        gallery: Count = 8,
        sampler: Annotated[dict[str, Any] | None, Sampler] = None,
        discriminator: Annotated[dict[str, Any] | None, DiscriminatorTraining] = None,
        ascent: Annotated[dict[str, Any] | None, Ascent] = None,
        averaging: Annotated[dict[str, Any] | None, Averaging] = None,
    ) -> None:
        weights = [0.0, 30.0, 200.0] if weights is None else [float(w) for w in weights]
        if not weights or len(set(weights)) < len(weights) or not all(0 <= w < float("inf") for w in weights):
            raise UsageError(f"weights = {weights!r}: give one or more different numbers of at least 0.")
        if targets is not None and (
            not isinstance(targets, list | tuple) or not targets or len(set(targets)) < len(targets)
        ):
            raise UsageError(f'targets = {targets!r}: give one or more different ones, as in ["logit:0"].')
        self.targets, self.weights = targets, sorted(weights)
        self.temperature, self.pull, self.smooth = temperature, pull, smooth
        self.images, self.test_images, self.judge_epochs = images, test_images, judge_epochs
        self.attacked, self.gallery = attacked, gallery
        self.sampler = grouped(Sampler, "sampler", sampler)
        self.rounds = grouped(DiscriminatorTraining, "discriminator", discriminator).schedule
        self.ascent = grouped(Ascent, "ascent", ascent)
        self.averaging = grouped(Averaging, "averaging", averaging)
        self.chains, self.plan = self.sampler.chains, self.sampler.plan

    @property
    def needs(self) -> tuple[Need, ...]:
        """None: what chains visit was never recorded."""
        return ()

    def measure(self, given: AnalysisInput) -> Sampled:
        """Train the discriminator, sample, measure, and ask the two questions.

        Raises:
            UsageError: for a target that the model has not, too few images, or chains that run away or stand still.
        """
        if min(len(given.fit), self.images) < 4 or min(len(given.evaluate), self.test_images) < 4:
            raise UsageError("ldam needs at least four fit and four evaluate images: raise data.fit or data.evaluate.")
        shape = given.fit.read(slice(0, 1)).shape
        model = given.traced_model.model
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        with one_thread(shape[2] * shape[3] <= _SMALL), cudnn, untouched(model):
            return self._sampled(given)

    def report(self, measured: Sampled) -> Findings:
        """Galleries, what the discriminator's weight does, and both questions."""
        arrays = {
            f"{name}/{setting}": group.images
            for (name, setting), group in measured.groups.items()
            if group.kind in ("langevin", "ascent")
        }
        if measured.averaging is not None:
            for (network, name, weight), group in measured.averaging.groups.items():
                arrays[f"averaging/{network} weights/{name}/{langevin_name(weight)}"] = group.images
        return Findings(claims(measured), figures(measured, self.gallery), tables(measured), arrays)

    def _sampled(self, given: AnalysisInput) -> Sampled:
        own, device, draws = given.traced_model, given.device, given.draws
        rows = slice(0, min(self.images, len(given.fit)))
        images, labels = given.fit.read(rows), given.fit.traces[rows].labels
        rows = slice(0, min(self.test_images, len(given.evaluate)))
        held_out, truth = given.evaluate.read(rows), given.evaluate.traces[rows].labels
        activations = Activations(own, self._targets(given, images))
        space = (
            Gaussian(images).to(device) if self.sampler.coordinates == "gaussian" else Pixels(tuple(images.shape[1:]))
        )
        # Everything is compared as images that coordinates exist for.
        known, fresh = space.expressible(images), space.expressible(held_out)
        data = activations.of(known, device)
        scale = Scale.of(data)
        given.progress(0.05)

        targets, per_target = activations.targets, len(self.weights) * self.chains
        which = torch.arange(len(targets)).repeat_interleave(per_target)
        weight = torch.tensor(self.weights).repeat_interleave(self.chains).repeat(len(targets))
        energy = Energy(
            activations, scale, space, which, weight, None, self.pull, self.smooth, self.temperature
        )  # fmt: skip
        trained: TrainedDiscriminator | None = None
        if max(self.weights) > 0:
            trained = train_discriminator(
                energy, space, images, self.rounds, self.plan.schedule.step, draws, device,
                lambda share: given.progress(0.05 + 0.35 * share),
            )  # fmt: skip
        discriminator = None if trained is None else trained.network
        # Every setting starts from the same states.
        start = space.draw(self.chains, draws("start"))
        run = langevin(
            energy, start.repeat(len(which) // self.chains, 1).to(device), self.plan, draws("noise"),
            lambda share: given.progress(0.4 + 0.3 * share),
        )  # fmt: skip
        validate_chains(run, self.plan, space.unbounded, discriminator is not None)
        judge = train_judge(known, labels, fresh, truth, len(given.classes), self.judge_epochs, draws, device)
        given.progress(0.75)
        metrics = Metrics(activations, scale, data, Features(activations), discriminator, judge, device)
        groups: dict[tuple[str, str], Group] = {}
        begin = space.images(start.to(device)).detach()
        reference = space.images(space.tempered(start, self.temperature).to(device)).detach().cpu()
        plain = self._ascents(activations, scale, begin, draws("jitter"))
        for number, target in enumerate(targets):
            real = self._random(target, fresh, truth, draws("random", target.name))
            unit = metrics.reference_distances(real.flatten(0, 1))
            found = [
                Group(target, name, "ascent", float("nan"), space.expressible(ascent[number])[:, None].cpu())
                for name, ascent in plain
            ]
            found.append(Group(target, REFERENCE, "reference", float("nan"), reference[:, None]))
            for k, value in enumerate(self.weights):
                chosen = number * per_target + k * self.chains + torch.arange(self.chains)
                states = run.states[:, chosen.to(run.states.device)]
                seen = space.images(states.flatten(0, 1)).detach().cpu().unflatten(0, states.shape[:2])
                group = Group(target, langevin_name(value), "langevin", value, seen.transpose(0, 1))
                found.append(group.diagnosed(run, chosen, space.unbounded))
            top = data[:, number].topk(min(self.chains, len(data))).indices
            found.append(Group(target, TOP, "data", float("nan"), known[top][:, None]))
            found.append(Group(target, RANDOM, "data", float("nan"), real))
            for group in found:
                metrics.measure(group, unit)
                groups[target.name, group.setting] = group
        given.progress(0.8)
        logits = [t for t in targets if t.kind == "logit"] or list(targets)
        study = None
        if self.averaging.steps:
            study = case_study(
                energy, own, logits[:1], self.weights[:2], start.to(device), self.plan, images, labels,
                (held_out, truth), judge, metrics, self.averaging.steps, self.averaging.rate, draws, device,
                lambda share: given.progress(0.8 + 0.18 * share),
            )  # fmt: skip
        attacks = readings(given, discriminator, judge, space, len(held_out), self.attacked) if self.attacked else []
        given.progress(1.0)
        return Sampled(
            targets,
            list(dict.fromkeys(setting for _, setting in groups)),
            groups,
            self.weights,
            None if trained is None else Learning(trained.real, trained.fake),
            judge.accuracy,
            self.chains,
            study,
            attacks,
            len(given.perturbed) if self.attacked else None,
            {
                "temperature": self.temperature, "pull": self.pull, "method": self.plan.method,
                "coordinates": self.sampler.coordinates, "steps": self.plan.steps, "burn_in": self.plan.burn_in,
            },
        )  # fmt: skip

    def _targets(self, given: AnalysisInput, images: Tensor) -> tuple[Target, ...]:
        taps, classes = given.traced_model.taps, given.classes
        if self.targets is not None:
            return tuple(parse(text, taps, classes) for text in self.targets)
        names = [f"logit:{c}" for c in dict.fromkeys((0, len(classes) // 2))]
        maps = [tap for tap in taps if len(tap.shape) > 1]
        if maps:
            names.append(f"channel:{maps[-1].name}:{_most_varied(given, maps[-1], images[:256])}")
        return tuple(parse(name, taps, classes) for name in names)

    def _ascents(
        self, activations: Activations, scale: Scale, start: Tensor, draws: torch.Generator
    ) -> list[tuple[str, list[Tensor]]]:
        """Images by target, of plain and of regularised activation maximisation from the chains' starts."""
        count = len(activations.targets)
        which = torch.arange(count).repeat_interleave(len(start))
        begin = start.repeat(count, 1, 1, 1)
        found = []
        for name, smooth, jitter in ((PLAIN, 0.0, 0), (SMOOTH, 1 / 64, _JITTER)):
            made = ascend(activations, scale, begin, which, self.ascent.steps, self.ascent.rate, smooth, jitter, draws)
            found.append((name, list(made.split(len(start)))))
        return found

    def _random(self, target: Target, held_out: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
        """Images that nothing chose but the class of a logit, none of those that the judge measures by, (n, 1, ...)."""
        others = torch.arange(1, len(labels), 2)
        mine = others[labels[others] == target.index] if target.kind == "logit" else others
        if len(mine) < 2:
            mine = others
        return held_out[mine[torch.randperm(len(mine), generator=draws)[: max(self.chains, 32)]]][:, None]


def _most_varied(given: AnalysisInput, tap: TapInfo, images: Tensor) -> int:
    """The channel of a tap whose mean varies most between images: a silent one would be no target."""
    codes = given.traced_model.codes((Need("pooled", (tap.name,)),), images)
    return int(codes.pooled(tap.name).std(0, correction=0).argmax())
