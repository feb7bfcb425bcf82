"""The command line: flags, configuration files, errors in one line (no torch)."""
