"""What a task file may be: helpers, contenders of its own, several metrics, batches of any form; and its errors."""

import re
from pathlib import Path

import pytest
from races import kept, race, refused

from unscheduled.lab.task import load_task, source_sha256

BOTH = ("--contenders", "schedule-free,linear", "--horizons", "16", "--rates", "0.1")

OWN_CONTENDER = """
from unscheduled.lab.contender import scheduled
from unscheduled.lab.schedules import cosine


def rmsprop(model, lr, options):
    return torch.optim.RMSprop(model.parameters(), lr=lr, alpha=0.97)


OWN = scheduled("RMSprop, linear warmup, then cosine decay", "AdamW", rmsprop, cosine)

task = """


def change(task: Path, old: str, new: str) -> None:
    """Edit a task file, which is then loaded anew."""
    source = task.read_text()
    assert old in source
    task.write_text(source.replace(old, new))
    load_task.cache_clear()


def test_a_task_may_import_its_neighbours_when_it_runs(tiny_task: Path) -> None:
    (tiny_task.parent / "neighbour_of_the_task.py").write_text("WIDTH = 8\n")
    change(tiny_task, "def model():\n", "def model():\n    import neighbour_of_the_task\n")
    assert race(tiny_task, "--contenders", "schedule-free", "--seeds", "1", "--rates", "0.1")


def test_a_helper_that_changes_makes_another_task(tiny_task: Path) -> None:
    """Also one that is imported by another, or within a function; not a file that is not imported."""
    folder = tiny_task.parent
    (folder / "helper_one.py").write_text("import helper_two\n")
    (folder / "helper_two.py").write_text("WIDTH = 8\n")
    (folder / "package_of_helpers").mkdir()
    (folder / "package_of_helpers" / "__init__.py").write_text("DEPTH = 1\n")
    (folder / "bystander.py").write_text("NOTHING = 1\n")
    change(tiny_task, "import time\n", "import time\n\nimport helper_one\n")
    change(tiny_task, "def model():\n", "def model():\n    from package_of_helpers import DEPTH\n")
    seen = {source_sha256(tiny_task)}
    for helper in ("helper_one.py", "helper_two.py", "package_of_helpers/__init__.py"):
        (folder / helper).write_text((folder / helper).read_text() + "MORE = 1\n")
        seen.add(source_sha256(tiny_task))
    assert len(seen) == 4
    (folder / "bystander.py").write_text("NOTHING = 2\n")
    assert source_sha256(tiny_task) in seen


def test_a_helper_that_is_broken_is_told_when_it_is_imported(
    tiny_task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_task.parent / "broken_helper.py").write_text("x = (\n")
    change(tiny_task, "def model():\n", "def model():\n    import broken_helper\n")
    line = refused(tiny_task, *BOTH, capsys=capsys)
    assert "SyntaxError: '(' was never closed (broken_helper.py, line 1) (tiny_task.py, line 13)" in line


def test_runs_of_a_helper_as_it_was_are_not_used(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helper = tiny_task.parent / "helper_that_changes.py"
    helper.write_text("WIDTH = 8\n")
    change(tiny_task, "def model():\n", "def model():\n    import helper_that_changes\n")
    race(tiny_task, *BOTH)
    before = kept()
    helper.write_text("WIDTH = 9\n")
    load_task.cache_clear()
    capsys.readouterr()
    race(tiny_task, *BOTH[:-2])
    assert "no tuned learning rates yet for schedule-free, linear" in capsys.readouterr().out
    after = kept()
    assert {name: after[name] for name in before} == before
    assert len(after) >= 2 * len(before)


def test_a_contender_of_ones_own(tiny_task: Path) -> None:
    change(tiny_task, "\ntask = ", OWN_CONTENDER)
    change(tiny_task, "    seeds=2,", '    seeds=2,\n    contenders={"rmsprop-cosine": OWN},')
    record = race(tiny_task, "--contenders", "schedule-free,rmsprop-cosine", "--horizons", "8,16", "--rates", "0.03")
    stated = record["contenders"]["rmsprop-cosine"]
    assert stated["theory"] == "RMSprop, linear warmup, then cosine decay"
    assert (stated["settings_of"], stated["anytime"]) == ("AdamW", False)
    assert [result["contender"] for result in record["results"]] == ["schedule-free", "rmsprop-cosine"] * 2
    assert all(result["mean"] is not None for result in record["results"])


def test_the_class_and_options_that_ran_are_told(tiny_task: Path) -> None:
    """Not the options of the task: the momentum of "inner-momentum", and an optimizer that takes others' settings."""
    change(tiny_task, "\ntask = ", OWN_CONTENDER)
    change(tiny_task, "    seeds=2,", '    seeds=2,\n    contenders={"rmsprop-cosine": OWN},')
    names = ("inner-momentum", "muon", "rmsprop-cosine", "cosine")
    record = race(tiny_task, "--contenders", ",".join(names), "--horizons", "16", "--rates", "0.03", "--seeds", "1")
    ran = {name: record["contenders"][name]["ran"] for name in names}
    classes = ["AdamWScheduleFree", "MuonScheduleFree", "RMSprop", "AdamW"]
    assert [ran[name]["class"] for name in names] == classes
    assert ran["inner-momentum"]["options"]["inner_momentum"] == 0.9
    assert ran["rmsprop-cosine"]["options"]["alpha"] == 0.97
    assert "betas" not in ran["rmsprop-cosine"]["options"]
    assert ran["cosine"]["options"]["betas"] == [0.9, 0.99]
    page = (tiny_task.parent / "out" / "race.html").read_text()
    assert "RMSprop, " in page
    assert "alpha 0.97" in page
    assert "MuonScheduleFree" in page


def test_a_metric_of_several_numbers(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is compared, the rest is shown."""
    change(
        tiny_task,
        "    return loss(model, next(batches(torch.Generator().manual_seed(5)))).item()",
        "    value = loss(model, next(batches(torch.Generator().manual_seed(5)))).item()\n"
        '    return {"cross-entropy": value, "negated": -value, "root": value**0.5}',
    )
    record = race(tiny_task, *BOTH)
    for result in record["results"]:
        assert result["mean"] > 0.0
        assert result["others"]["negated"] == pytest.approx(-result["mean"])
    printed = capsys.readouterr().out
    shown = [f"{result['contender']} {result['others']['negated']:.4g}" for result in record["results"]]
    assert f"negated at 16 steps: {', '.join(shown)}\n" in printed
    assert "tiny-task: cross-entropy (lower is better)" in printed
    page = (tiny_task.parent / "out" / "race.html").read_text()
    assert "<h3>Negated</h3>" in page
    assert f"<td>{record['results'][1]['others']['root']:.4g}</td>" in page


def test_a_metric_of_which_more_is_better(tiny_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The race is the same but for its sign, and so are its choices and its verdicts."""
    loss = race(tiny_task, "--contenders", "schedule-free,linear")
    change(tiny_task, ".manual_seed(5)))).item()", ".manual_seed(5)))).neg().item()")
    change(tiny_task, "    seeds=2,", "    seeds=2,\n    lower_is_better=False,")
    capsys.readouterr()
    negated = race(tiny_task, "--contenders", "schedule-free,linear", out=tiny_task.parent / "negated")
    assert "cross-entropy (higher is better)" in capsys.readouterr().out
    assert "Higher is better." in (tiny_task.parent / "negated" / "race.html").read_text()
    for lower, higher in zip(loss["results"], negated["results"], strict=True):
        assert higher["mean"] == pytest.approx(-lower["mean"])
        assert higher.get("verdict") == lower.get("verdict")
        assert higher["best_so_far"]["mean"] == pytest.approx(-lower["best_so_far"]["mean"])
    assert [t["steps"] for t in negated["steps_to_target"]] == [
        None if t["steps"] is None else pytest.approx(t["steps"]) for t in loss["steps_to_target"]
    ]


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ('{"inputs": inputs, "more": [None, "text"]}', 'batch["inputs"]'),
        ("inputs.to_sparse()", "batch.to_dense()"),
        ("inputs.to_sparse_csr()", "batch.to_dense()"),
        ("types.SimpleNamespace(inputs=inputs)", "batch.inputs"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_batch_of_any_form(tiny_task: Path, batch: str, inputs: str) -> None:
    change(tiny_task, "nn.BatchNorm1d(8), ", "")
    change(tiny_task, "import time\n", "import time\nimport types\n")
    change(tiny_task, "yield inputs, (inputs.sum(1, keepdim=True) > 0).float()", f"yield {batch}")
    change(
        tiny_task,
        "_with_logits(model(batch[0]), batch[1])",
        f"_with_logits(model({inputs}), ({inputs}.sum(1, keepdim=True) > 0).float())",
    )
    record = race(tiny_task, *BOTH)
    first = {run["seed"]: run["first_batch_sha256"] for run in record["runs"]}
    assert len({*first.values()}) == 2  # another one for each seed: the checksum is of the values


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "nn.Linear(8, 1)",
            "nn.Linear(7, 1)",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (16x8 and 7x1)",
        ),
        (
            "    time.sleep",
            "    if model.training:\n        return model(batch[0])\n    time.sleep",
            "TypeError: `loss` returned a tensor of shape (16, 1): want a tensor of one number, such as the mean",
        ),
        (
            "    time.sleep",
            "    if model.training:\n        return 0.5\n    time.sleep",
            "TypeError: `loss` returned 0.5: want a tensor of one number",
        ),
        ("    return loss(model, next(", "    return {}\n    return loss(model, next(", "`metric` returned no number"),
        ("    while True:\n", "    for _ in range(3):\n", "batches ended after 3 of 16 steps; they must be endless"),
        ("    time.sleep", "    1 / 0\n    time.sleep", "ZeroDivisionError: division by zero (tiny_task.py, line 23)"),
    ],
)
def test_a_task_that_fails_while_it_runs(
    tiny_task: Path, old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(tiny_task, old, new)
    line = refused(tiny_task, *BOTH, capsys=capsys)
    assert line.startswith("unscheduled race: tiny-task: the run ")
    assert told in line
    assert re.search(r"\(tiny_task\.py, line \d+\)$", line.strip())
