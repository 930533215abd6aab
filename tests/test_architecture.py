"""Who may import whom, how long a file may be, what lies at the top level."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("lightning_modules", "datamodules", "callbacks", "experiments")
TOP_LEVEL = {*ROOMS, "tests", "requirements.txt", "README.md", "pyproject.toml", ".gitignore", ".ci", "LICENSE"}
PURE_ROOMS = ("lightning_modules.talker", "lightning_modules.thinker", "lightning_modules.vocoder")
MAX_LINES = 320
MAX_LINES_OF = {"experiments/run.py": 80}

# what each room may import of ours; the longest prefix of a module's name counts
MAY_IMPORT = {
    "lightning_modules.talker": ("lightning_modules.talker",),
    "lightning_modules.thinker": ("lightning_modules.thinker",),
    "lightning_modules.vocoder": ("lightning_modules.vocoder",),
    "lightning_modules": ("lightning_modules", "datamodules.batch"),
    "datamodules": ("datamodules", "lightning_modules.talker.vocabulary"),
    "callbacks": ("callbacks", "lightning_modules", "datamodules.batch"),
    "experiments": ("experiments", "callbacks", "datamodules", "lightning_modules"),
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports_of(file: Path) -> set[str]:
    """Return the modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            found.add(node.module)
    return found


FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_keeps_to_the_house(file: Path) -> None:
    name = module_name(file)
    room = max((prefix for prefix in MAY_IMPORT if is_within(name, prefix)), key=len)
    for imported in imports_of(file):
        if imported.split(".")[0] in (*ROOMS, "tests"):
            allowed = MAY_IMPORT[room]
            assert any(is_within(imported, prefix) for prefix in allowed), f"{name} must not import {imported}"
        if room in PURE_ROOMS:
            assert imported.split(".")[0] not in ("lightning", "pytorch_lightning"), f"{name} must not know Lightning"
    num_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES_OF.get(str(file.relative_to(ROOT)), MAX_LINES), f"{name} has {num_lines} lines"


def test_rooms_hold_files() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(ROOMS)


def test_top_level_is_as_the_user_fixed_it() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert {Path(line).parts[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


def test_a_forbidden_import_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text("def f():\n    from experiments.run import main\n    import lightning.pytorch as pl\n")
    assert imports_of(file) == {"experiments.run", "lightning.pytorch"}
    assert not any(is_within("experiments.run", prefix) for prefix in MAY_IMPORT["callbacks"])
    assert not is_within("lightning_modules.talkers", "lightning_modules.talker")
