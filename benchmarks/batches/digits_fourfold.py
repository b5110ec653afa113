"""The task digits with batches of four times the size."""

from resized import fourfold

task = fourfold("digits")
