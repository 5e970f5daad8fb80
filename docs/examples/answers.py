import aftershock

run = aftershock.load("runs/quick")
run.leaderboard, run.attacks, run.metrics, run.timings, run.radii  # pandas frames, as are all tables

found = run.images("pgd", missed_by="mahalanobis", model="cnn", limit=16)
found.perturbed - found.clean, found.index, found.prediction, found.scores["mahalanobis"]

curve = run.roc("bits-hamming", "pgd", model="cnn")
curve.fpr, curve.tpr, curve.auroc, curve.interval, curve.at_threshold

run.compare("bits-hamming", "mahalanobis", model="cnn").frame
run.compare(aftershock.load("runs/other")).sentences

print(run.to_latex(), run.to_markdown(), run.to_bibtex())

run.figures.roc(["bits-hamming", "mahalanobis"], "adaptive", model="cnn")
run.figures.scores("mahalanobis", "pgd", model="cnn")
run.figures.budget("pgd", "mahalanobis", model="cnn")
