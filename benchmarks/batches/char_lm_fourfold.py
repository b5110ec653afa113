"""The task char-lm with batches of four times the size."""

from resized import fourfold

task = fourfold("char-lm")
