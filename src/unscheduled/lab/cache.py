"""The folder of data sets and finished runs, all of which the lab can make again."""

import os
from pathlib import Path

from platformdirs import user_cache_path

VARIABLE = "UNSCHEDULED_CACHE"


def cache_folder() -> Path:
    """The folder that the environment variable ``UNSCHEDULED_CACHE`` names, else the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else user_cache_path("unscheduled", appauthor=False)
