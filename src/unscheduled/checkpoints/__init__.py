"""State dicts and files."""
