from pathlib import Path

import numpy as np
import pandas as pd
from aftershock.harness.statistics.ranks import ranks
from aftershock.harness.statistics.samples import WorstCase, row_sample

tables, model = Path("runs/quick/tables"), "cnn"
board = pd.read_csv(tables / "leaderboard.csv").query("model == @model").set_index("detector")
scores = pd.read_csv(tables / "scores.csv.gz", dtype={"label": str, "prediction": str}).query("model == @model")
kinds = pd.read_csv(tables / "perturbations.csv").groupby("perturbation")["kind"].first()
norm, eps, images = board["norm"].iloc[0], board["eps"].iloc[0], int(board["n_images"].iloc[0])


def worst_case(own, detector):
    """For which thresholds each evaluate image is robust: clean score <= t < lowest score of what fools the model."""
    calibrate = own[own["set"] == "calibrate"]["score"].to_numpy()
    clean = own[own["set"] == "clean"].head(images).set_index("index")
    counting = [p for p, kind in kinds.items() if kind == "attack" or p.endswith(f"@{detector}")]
    made = own[own["set"].isin(["perturbed", "rounded-8-bit", "rounded-levels"]) & own["perturbation"].isin(counting)]
    fooling = made[(made["success"] == 1) & (made[norm] <= eps * (1 + 1e-4) + 1e-6)]
    right = (clean["label"] == clean["prediction"]).to_numpy()
    lower = np.where(right, clean["score"], np.inf)
    upper = fooling.groupby("index")["score"].min().reindex(clean.index).fillna(np.inf).to_numpy()
    t = np.sort(calibrate)[-int(0.05 * (len(calibrate) + 1) + 1e-9)]
    # The row without a detector: every image has the score 0, and the threshold is 0.
    return (
        (WorstCase(calibrate, lower, upper), t) if detector != "none" else (WorstCase(np.zeros(0), lower, upper), 0.0)
    )


robust, undetected, rows = {}, {}, {}
some = board.index.drop("none")[0]
for detector in board.index:
    own = scores[scores["detector"] == (some if detector == "none" else detector)]
    own = own.assign(score=0.0) if detector == "none" else own
    seeds = [worst_case(of_seed, detector) for _, of_seed in own.groupby("seed")]
    robust[detector] = np.mean([((s.lower <= t) & (t < s.upper)).mean() for s, t in seeds])
    undetected[detector] = np.mean([(s.upper[np.isfinite(s.lower)] <= t).mean() for s, t in seeds])
    rows[detector] = row_sample(
        [s for s, _ in seeds], (own[own["seed"] == own["seed"].min()]["set"] == "calibrate").sum()
    )

able = [d for d in board.index if pd.isna(board["not_ranked_reason"][d])]
# Before price orders rows of one rank.
places = dict(zip(able, ranks([robust[d] for d in able], [rows[d] for d in able], level=0.04), strict=True))
print(pd.DataFrame({"rank": places, "robust accuracy": robust, "adaptive undetected": undetected}).reindex(board.index))
