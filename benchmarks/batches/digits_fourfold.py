"""The task digits, batches of four times the size."""

from resized import fourfold

task = fourfold("digits")
