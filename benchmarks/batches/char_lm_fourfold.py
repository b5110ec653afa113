"""The task char-lm, batches of four times the size."""

from resized import fourfold

task = fourfold("char-lm")
