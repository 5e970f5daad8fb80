"""What several test files share: commands in processes, small suites, made-up networks, tables that are read back."""
