"""Suite to plan to run: the command line, the registry, models and data, taps and traces, the protocol."""
