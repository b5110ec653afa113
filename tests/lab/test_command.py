"""The command: what it refuses, in one line and with exit code 2."""

import importlib.util
from pathlib import Path

import pytest

from unscheduled.cli import main
from unscheduled.lab.contenders import CONTENDERS
from unscheduled.lab.task import built_in_tasks


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command writes about bad arguments, after checking that it is one and the code is 2."""
    with pytest.raises(SystemExit) as exit_:
        main(["race", *arguments])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unscheduled race: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_unknown_task_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["no-such-task"], capsys)
    assert "'no-such-task'" in line
    assert "char-lm, cora-gcn, digits" in line


def test_missing_task_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"no such task file: {Path('missing.py').absolute()}" in refusal(["missing.py"], capsys)


@pytest.mark.parametrize("horizons", ["8,17", "0,8"])
def test_horizon_outside_the_budget(tiny_task: Path, horizons: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal([str(tiny_task), "--horizons", horizons, "--out", str(tiny_task.parent / "out")], capsys)
    assert f"horizon {'17' if '17' in horizons else '0'} is outside [1, 16] steps" in line


def test_horizons_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'8,many'" in refusal(["--horizons", "8,many"], capsys)


@pytest.mark.parametrize("option", ["--steps", "--seeds", "--jobs"])
def test_numbers_below_one(tiny_task: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{option} 0" in refusal([str(tiny_task), option, "0", "--out", str(tiny_task.parent / "out")], capsys)


def test_unknown_contender_lists_those_there_are(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tiny_task.parent / "out")
    line = refusal([str(tiny_task), "--contenders", "schedule-free,stairs", "--out", out], capsys)
    assert "'stairs'" in line
    assert ", ".join(CONTENDERS) in line


def test_contender_without_settings_in_the_task(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_task.read_text().replace('"AdamW": ', '"SGD": ')
    tiny_task.write_text(source)
    line = refusal([str(tiny_task), "--out", str(tiny_task.parent / "out")], capsys)
    assert "no settings for AdamW (contender cosine)" in line


def test_folder_that_cannot_be_written(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_task.parent / "file").write_text("in the way")
    folder = tiny_task.parent / "file" / "out"
    assert f"cannot write to {folder}" in refusal([str(tiny_task), "--out", str(folder)], capsys)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import torch\n\nraise LookupError('no data\\nhere')\n", "LookupError: no data here (broken.py, line 3)"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library' (broken.py, line 1)"),
        ("x = (\n", "SyntaxError: '(' was never closed"),
        ("raise SystemExit\n", "SystemExit: (broken.py, line 1)"),
        ("task = 3\n", "defines no `task = Task(...)`"),
    ],
)
def test_task_file_that_fails(tmp_path: Path, source: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    assert told in refusal([str(file)], capsys)


def test_grids_of_different_sizes(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_task.read_text().replace("[0.01, 0.03], {", "[0.01], {", 1)
    tiny_task.write_text(source)
    assert "a grid of the same size" in refusal([str(tiny_task)], capsys)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[0.01, 0.03]", "[0.01, -0.03]"), "want different numbers above 0"),
        (("[0.01, 0.03]", "[0.03, 0.03]"), "want different numbers above 0"),
        (("seeds=2", "seeds=0"), "seeds = 0"),
        (("evaluations=4", "evaluations=0"), "evaluations = 0"),
        (("warmup_steps=4", "warmup_steps=16"), "warmup_steps = 16"),
        (("steps=16", "steps=20.5"), "TypeError: steps = 20.5: want an integer (tiny_task.py, line 31)"),
    ],
)
def test_a_task_out_of_range(
    tiny_task: Path, change: tuple[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_task.write_text(tiny_task.read_text().replace(*change))
    assert told in refusal([str(tiny_task)], capsys)


def test_missing_libraries(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def found(name: str) -> object:
        return None if name in ("rich", "sklearn") else object()

    monkeypatch.setattr(importlib.util, "find_spec", found)
    line = refusal([], capsys)
    assert "needs rich, sklearn: pip install 'unscheduled[lab]'" in line


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["race", "--list"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in lines]
    assert first_words == ["tasks:", *built_in_tasks(), "contenders,", *CONTENDERS]
    assert {"char-lm", "digits"} <= {*first_words}
    settings_of = {line.split()[0]: line.split()[1] for line in lines[first_words.index("contenders,") + 1 :]}
    assert settings_of == {name: contender.settings_of for name, contender in CONTENDERS.items()}
    assert (settings_of["linear"], settings_of["muon"], settings_of["sgd-step"]) == (
        "AdamW",
        "AdamWScheduleFree",
        "SGD",
    )
