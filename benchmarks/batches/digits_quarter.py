"""The task digits, batches of a quarter of the size."""

from resized import quarter

task = quarter("digits")
