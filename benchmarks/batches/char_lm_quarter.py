"""The task char-lm with batches of a quarter of the size."""

from resized import quarter

task = quarter("char-lm")
