"""Templates of the packages that ``aftershock new`` writes."""
