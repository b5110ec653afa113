"""The shell round every algorithm, and its parts."""
