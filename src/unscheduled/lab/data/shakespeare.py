"""The parser of Shakespeare's works."""

import numpy as np

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files


def shakespeare(files: Files) -> Arrays:
    """The bytes of all works, joined by newlines in alphabetical order of their files."""
    text = b"\n".join(files[path] for path in sorted(files))
    return {"text": np.frombuffer(text, np.uint8)}
