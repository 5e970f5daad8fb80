import aftershock
from aftershock import check_detector
from quiet_units import QuietUnits  # or the class in a cell of its own

for finding in check_detector(QuietUnits, {"layers": "last:1"}):
    if finding.status == "failed":
        print(finding)

run = aftershock.run(
    {
        "name": "notebook",
        "data": {"name": "digits", "fit": 600, "calibrate": 200, "evaluate": 200},
        "threat": {"norm": "linf", "eps": 0.2},
        "models": [{"name": "cnn"}],
        "perturbations": [{"name": "pgd", "eps": 0.2}],
        "detectors": [{"name": "quiet-units"}, {"name": "energy"}],
    }
)
run.leaderboard[["detector", "robust_accuracy_at_fpr_5", "worst_auroc", "flags"]]
