import aftershock

run = aftershock.run("my-suite.toml")
run.leaderboard  # pandas DataFrames: also metrics, scores, propagation, perturbations
