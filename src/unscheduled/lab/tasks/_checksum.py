"""What tasks record about their data."""

import functools
import hashlib

from unscheduled.lab.data import load


@functools.cache
def data_sha256(name: str) -> str:
    """The checksum of the arrays of a data set, with their names, as they are loaded."""
    digest = hashlib.sha256()
    for key, array in sorted(load(name).items()):
        digest.update(key.encode() + array.tobytes())
    return digest.hexdigest()
