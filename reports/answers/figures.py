"""Figures of a run as plotly objects: to show in a notebook, to change and to save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.core.registry import did_you_mean
from ..read.frames import RunTables, only
from .names import detector_of, listed, model_of, perturbation_of, seed_of
from .roc import roc
from .selection import thresholds

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure

_BINS = 40
# Populations of the propagation table that a figure shows, and how their lines are drawn.
_LINES = {"success": "solid", "control": "dot"}
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")


@dataclass(frozen=True)
class Figures:
    """Makes figures of a run; each method returns a ``plotly.graph_objects.Figure``.

    Attributes:
        tables: of the run.
    """

    tables: RunTables

    def propagation(
        self, perturbations: Sequence[str] | None = None, *, metric: str = "relative_l2", model: str | None = None
    ) -> Figure:
        """Return how far perturbations carry through the layers, beside noise of their size (dotted), means over seeds.

        Args:
            perturbations: labels; by default all but those made against a detector.
            metric: as in ``propagation.csv``: ``relative_l2``, ``cosine_distance``, ``bit_flip_rate``, ...
            model: its label; may be left out where there is one.

        Raises:
            UsageError: for a name that the run does not have.
        """
        rows = only(self.tables.propagation, model=model_of(self.tables, model))
        known = list(dict.fromkeys(rows["metric"]))
        if metric not in known:
            hint = did_you_mean(metric, known)
            raise UsageError(f"{self.tables.folder} has no measure {metric!r}{hint}; it has {listed(known)}.")
        rows = only(rows, metric=metric)
        if perturbations is None:
            labels = [p for p in dict.fromkeys(rows["perturbation"]) if "@" not in p]
        else:
            labels = [perturbation_of(self.tables, p) for p in perturbations]
        figure = _figure(f"Propagation: {metric.replace('_', ' ')}", "layer", metric.replace("_", " "))
        for i, label in enumerate(labels):
            for population, dash in _LINES.items():
                own = only(rows, perturbation=label, population=population)
                means = own.groupby(["depth", "tap"])["mean"].mean().reset_index().sort_values("depth")
                if len(means):
                    name = label if population == "success" else f"{label}: control"
                    line = {"dash": dash, "color": _COLOURS[i % len(_COLOURS)]}
                    figure.add_scatter(
                        x=means["tap"], y=means["mean"], name=_plain(name), line=line, mode="lines+markers"
                    )
        return figure

    def roc(
        self, detectors: str | Sequence[str], perturbation: str, *, model: str | None = None, seed: int | None = None
    ) -> Figure:
        """Return the ROC curves of detectors on a perturbation, each with the point of its calibrated threshold.

        Args:
            detectors: a label, or several.
            perturbation: its label; of an adaptive attack, that against each detector.
            model: its label; may be left out where there is one.
            seed: by default the first one.

        Raises:
            UsageError: as :func:`~.roc.roc`.
        """
        figure = _figure(f"ROC on {perturbation}", "false positive rate", "true positive rate")
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="chance", line={"dash": "dot", "color": "#888"}, hoverinfo="skip"
        )
        for i, name in enumerate([detectors] if isinstance(detectors, str) else detectors):
            found = roc(self.tables, name, perturbation, model, seed)
            low, high = found.interval
            title = f"{found.detector}: {found.auroc:.3f} [{low:.3f}, {high:.3f}]"
            colour = _COLOURS[i % len(_COLOURS)]
            figure.add_scatter(
                x=found.fpr, y=found.tpr, mode="lines", name=_plain(title), line={"color": colour, "shape": "hv"}
            )
            x, y = found.at_threshold
            if np.isfinite([x, y]).all():
                marker = {"color": colour, "size": 10, "symbol": "circle-open"}
                figure.add_scatter(x=[x], y=[y], mode="markers", marker=marker, name="threshold", showlegend=False)
        figure.update_xaxes(range=[-0.01, 1.01])
        figure.update_yaxes(range=[-0.01, 1.01], scaleanchor="x")
        return figure

    def scores(self, detector: str, perturbation: str, *, model: str | None = None, seed: int | None = None) -> Figure:
        """Return histograms of a detector's scores: clean images, those that fool the model, and their controls.

        Args:
            detector: its label.
            perturbation: its label.
            model: its label; may be left out where there is one.
            seed: by default the first one.

        Raises:
            UsageError: for a name that the run does not have.
        """
        tables = self.tables
        detector, model, seed = detector_of(tables, detector), model_of(tables, model), seed_of(tables, seed)
        perturbation = perturbation_of(tables, perturbation, detector)
        own = only(tables.scores, model=model, seed=seed, detector=detector)
        hit = only(own, perturbation=perturbation, set="perturbed")
        kinds = {
            "clean": _finite(only(own, set="clean")),
            "control of equal norm": _finite(only(own, perturbation=perturbation, set="control")),
            perturbation: _finite(hit[hit["success"] == 1]),
        }
        found = np.concatenate(list(kinds.values()))
        if not len(found):
            raise UsageError(f"{tables.folder} holds no scores of {detector} on {perturbation}.")
        edges = np.linspace(found.min(), found.max(), _BINS + 1) if found.max() > found.min() else None
        figure = _figure(f"Scores of {detector} on {perturbation}", "score", "share of images")
        for i, (name, values) in enumerate(kinds.items()):
            if len(values):
                size = {} if edges is None else {"start": edges[0], "end": edges[-1], "size": edges[1] - edges[0]}
                figure.add_histogram(
                    x=values, name=_plain(f"{name} ({len(values)})"), histnorm="probability", opacity=0.6, xbins=size,
                    marker_color=_COLOURS[i],
                )  # fmt: skip
        figure.update_layout(barmode="overlay")
        threshold = thresholds(tables, model, seed, [detector])[detector]
        if np.isfinite(threshold):
            figure.add_vline(x=threshold, line={"dash": "dash", "color": "#888"}, annotation_text="threshold (FPR 5 %)")
        return figure

    def budget(self, attack: str, detectors: str | Sequence[str] | None = None, *, model: str | None = None) -> Figure:
        """Return the share of images that fool the model and pass a detector, by the attack's budget, means over seeds.

        Args:
            attack: the label before budgets were expanded (``pgd``, ``adaptive``).
            detectors: a label, or several; by default all, and the row without one.
            model: its label; may be left out where there is one.

        Raises:
            UsageError: if the run has no such attack.
        """
        rows = only(self.tables.attacks, model=model_of(self.tables, model))
        groups = list(dict.fromkeys(rows["group"].dropna()))
        if attack not in groups:
            hint = did_you_mean(attack, groups)
            raise UsageError(f"{self.tables.folder} has no attack {attack!r}{hint}; it has {listed(groups)}.")
        rows = only(rows, group=attack)
        # What was made against one detector says nothing of another.
        rows = rows[rows["against"].isna() | (rows["against"] == rows["detector"])]
        known = list(dict.fromkeys(rows["detector"]))
        names = known if detectors is None else [detectors] if isinstance(detectors, str) else list(detectors)
        figure = _figure(f"Undetected success of {attack}", "budget", "share of images")
        for i, name in enumerate(names):
            own = only(rows, detector=name if name == "none" else detector_of(self.tables, name))
            means = own.groupby("eps")["undetected_success_at_fpr_5"].mean().reset_index().sort_values("eps")
            line = {"color": _COLOURS[i % len(_COLOURS)], "dash": "dot" if name == "none" else "solid"}
            figure.add_scatter(
                x=means["eps"],
                y=means["undetected_success_at_fpr_5"],
                name=_plain(name),
                line=line,
                mode="lines+markers",
            )
        figure.update_yaxes(range=[-0.02, 1.02])
        return figure


def _finite(rows: pandas.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = rows["score"].to_numpy(np.float64)
    return np.asarray(values[np.isfinite(values)])


def _figure(title: str, x: str, y: str) -> Figure:
    from plotly.graph_objects import Figure

    # A name in a title is text: plotly would read some of it as markup.
    figure = Figure()
    figure.update_layout(title={"text": _plain(title)}, xaxis_title=_plain(x), yaxis_title=_plain(y), template="none")
    return figure


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")
