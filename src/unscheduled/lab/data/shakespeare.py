"""The parser of Shakespeare's works."""

import numpy as np

from unscheduled.lab.data.arrays import Arrays
from unscheduled.lab.data.contents import Files


def shakespeare(files: Files) -> Arrays:
    """The works one after the other, in alphabetical order of their files, with a newline between them."""
    text = b"\n".join(files[path] for path in sorted(files))
    return {"text": np.frombuffer(text, np.uint8)}
