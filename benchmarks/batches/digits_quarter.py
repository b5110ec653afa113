"""The task digits with batches of a quarter of the size."""

from resized import quarter

task = quarter("digits")
