"""The mathematics, independent of any framework."""
