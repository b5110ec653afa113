"""The state of parameters and groups, and the forms in which it is stored."""
