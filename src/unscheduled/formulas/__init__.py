"""The mathematics, framework-free."""
