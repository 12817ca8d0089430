"""What documents and docstrings show of the Python API runs as it stands there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import dmray

ROOT = Path(__file__).parents[2]
_NOT_RUN = ("run_sweep(", "evaluate_sweep(", "load_published_policy(")  # the page has the first two; files of others


def code_blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def docstring_examples(file: Path) -> list[str]:
    """The indented blocks of the docstrings of a file's functions, and of the file's own."""
    tree = ast.parse(file.read_text())
    places = [tree, *(node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))]
    examples = []
    for place in places:
        for paragraph in (ast.get_docstring(place) or "").split("\n\n"):
            if paragraph and all(line.startswith("    ") for line in paragraph.splitlines()):
                examples.append("\n".join(line[4:] for line in paragraph.splitlines()))
    return examples


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the sweeps of the repository."""
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_api_page_and_the_docstrings_run(workplace: Path) -> None:
    blocks = code_blocks((ROOT / "docs" / "api.md").read_text())
    assert len(blocks) == 11
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (workplace / "report" / "report.html").is_file()
    assert len(list((workplace / "drawn" / "pictures").iterdir())) == 2
    files = [ROOT / "dmray" / "api" / f"{name}.py" for name in ("sweeps", "results", "policies", "analyses")]
    examples = [example for file in files for example in docstring_examples(file)]
    assert len(examples) == 12
    names |= {"observations": names["observations"][:2, 0], "sweep": dmray.plan_sweep("sweeps/quickstart.yaml")}
    for example in examples:
        if not any(name in example for name in _NOT_RUN):
            exec(compile(example, "dmray/api", "exec"), names)


def test_every_function_is_on_the_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    functions = [name for name in dmray.__all__ if name[0].islower()]
    assert [name for name in functions if f"`{name}(" not in page] == []


def test_the_example_of_an_own_loop_runs(ran: dmray.SweepRun, trial_folders: dict[str, Path]) -> None:
    command = [sys.executable, str(ROOT / "examples" / "own_loop.py"), str(trial_folders["dt"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert "DT of open-expert, seed 0, after 40 steps: 4 numbers in, 2 out, in maze2d-open" in run.stdout
    assert "normalized score of 4 other episodes" in run.stdout


def test_the_guides_decode_mode_works_as_an_installed_package(tmp_path: Path, trial_folders: dict[str, Path]) -> None:
    """Its two files and its entry point, installed as pip would."""
    heading = "## A decode mode"
    guide = next(text for file in ROOT.glob("docs/extending*.md") if heading in (text := file.read_text()))
    section = guide.split(heading)[1].split("\n## ")[0]
    for block in code_blocks(section):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    (project,) = code_blocks(section, "toml")
    ((group, entries),) = tomllib.loads(project)["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    installed = tmp_path / "short_window-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: short-window\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    code = """
import sys
import dmray
from dmray.errors import DmrayError

policy = dmray.load_policy(sys.argv[1])
returns = [
    [episode.episode_return for episode in dmray.evaluate_policy(policy, episodes=2, decode=decode).episodes]
    for decode in ("window", "short:4", "short:1")
]
print(returns[0] == returns[1], returns[0] == returns[2])
for decode in ("short:5", "short:x", "shrt:2"):
    try:
        policy.start(decode=decode)
    except DmrayError as mistake:
        print(mistake)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(trial_folders["dt"])],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[1:] == [
        "decode short:5: is longer than context_length 4",
        "decode 'short:x': short takes a number of timesteps from 1 on, for example short:5",
        "unknown decode mode 'shrt:2', did you mean 'short:2'?",
    ]
    assert run.stdout.startswith("True ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2, "the learning curves, and the maze"
    (bar,) = [data["text/html"] for data in shown if "<progress" in data.get("text/html", "")]
    assert "2/2 trials done" in bar
    assert (tmp_path / "runs" / "quickstart" / "report" / "report.html").is_file()
