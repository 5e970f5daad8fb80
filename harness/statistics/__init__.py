"""Statistics of the ranking: tests of pairs of rows, Holm's correction, ranks, intervals over seeds."""
