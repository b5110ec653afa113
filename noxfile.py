"""The fast tests with other versions of Python and torch: the oldest that are supported, and the newest.

`nox` runs the two outer pairs, `nox --session "tests-3.12(oldest)"` another one; `nox --list` names them all. pytest
gets what follows `--`. The interpreters have to be on the PATH.
"""

from __future__ import annotations

from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
EXTRAS = ["checkpoints", "fused", "lab"]

nox.options.sessions = [f"tests-{PYTHONS[0]}(oldest)", f"tests-{PYTHONS[-1]}(newest)"]
nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "yes"


def oldest(python: str) -> list[str]:
    """The lower bounds of torch and, on the oldest Python, of the extras; on later ones many have no wheels."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    bounds = list(project["dependencies"])
    if python == PYTHONS[0]:
        bounds += [bound for extra in EXTRAS for bound in project["optional-dependencies"][extra]]
    return [bound.replace(">=", "==") for bound in bounds]


def newest(_: str) -> list[str]:
    """The versions of the project's own runs."""
    return Path("constraints.txt").read_text().splitlines()


@nox.session(python=PYTHONS)
@nox.parametrize("versions", [nox.param(oldest, id="oldest"), nox.param(newest, id="newest")])
def tests(session: nox.Session, versions) -> None:
    constraints = versions(session.python)
    file = Path(session.create_tmp(), "constraints.txt")
    file.write_text("\n".join(constraints))
    # torch first and by its exact version, so that nothing else chooses another build of it
    session.install(*(line for line in constraints if line.startswith("torch==")))
    session.install("--constraint", str(file), "--editable", ".[test]")
    session.run("pytest", "-m", "not slow", *(session.posargs or ["-n", "2"]), env={"OMP_NUM_THREADS": "1"})
