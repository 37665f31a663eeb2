"""Can the result be trusted? Operating points, robustness, shortcuts in the data."""
