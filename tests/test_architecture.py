"""Who may import whom, how long a file may be, what lies at the top level."""

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("lightning_modules", "datamodules", "callbacks", "experiments")
TOP_LEVEL = {
    *ROOMS,
    "tests",
    "requirements.txt",
    "README.md",
    "pyproject.toml",
    ".gitignore",
    ".ci",
    "LICENSE",
    "CONTRIBUTING.md",
}
PURE_ROOMS = (
    "lightning_modules.adapters",
    "lightning_modules.talker",
    "lightning_modules.thinker",
    "lightning_modules.vocoder",
    "lightning_modules.codec",
    "lightning_modules.inference",
)
MAX_LINES = 320
MAX_LINES_OF = {"experiments/run.py": 120}
MAX_FILES = 12
# every room may raise the one, call the others, and pass on the turns of dialogues
FOR_ALL = (
    "lightning_modules.errors",
    "lightning_modules.number_checks",
    "lightning_modules.token_format",
    "lightning_modules.pretrained",
    "datamodules.workers",
    "lightning_modules.dialogue",
)

# what each room may import of ours; the longest prefix of a module's name counts
MAY_IMPORT = {
    "lightning_modules.errors": (),
    "lightning_modules.number_checks": (),
    "lightning_modules.pretrained": ("lightning_modules.pretrained",),
    "lightning_modules.dialogue": (),
    "lightning_modules.token_format": (),
    "lightning_modules.talker": ("lightning_modules.talker",),
    "lightning_modules.talker.network": ("lightning_modules.talker.network",),
    "lightning_modules.talker.masking": ("lightning_modules.talker.masking",),
    "lightning_modules.talker.decoding": ("lightning_modules.talker.decoding", "lightning_modules.talker.network"),
    "lightning_modules.thinker": (
        "lightning_modules.thinker",
        "lightning_modules.talker.losses",
        "lightning_modules.talker.network.transfers",
        "lightning_modules.adapters",
    ),
    "lightning_modules.adapters": ("lightning_modules.adapters", "lightning_modules.training.seeding"),
    "lightning_modules.vocoder": ("lightning_modules.vocoder",),
    "lightning_modules.codec": (
        "lightning_modules.codec",
        "lightning_modules.acoustics",
    ),
    "lightning_modules.codec.objectives": (
        "lightning_modules.codec.objectives",
        "lightning_modules.acoustics",
        "lightning_modules.evaluation.text_normalization",
        "lightning_modules.talker.losses",
    ),
    "lightning_modules.acoustics": ("lightning_modules.acoustics",),
    "lightning_modules.training": ("lightning_modules.training", "lightning_modules.talker.losses"),
    "lightning_modules.sharding": (
        "lightning_modules.sharding",
        "lightning_modules.thinker",
        "lightning_modules.training",
    ),
    "lightning_modules.evaluation": (
        "lightning_modules.evaluation",
        "lightning_modules.talker",
        "lightning_modules.acoustics.log_mel",
    ),
    "lightning_modules.inference": (
        "lightning_modules.inference",
        "lightning_modules.adapters",
        "lightning_modules.talker",
        "lightning_modules.thinker",
        "lightning_modules.vocoder",
    ),
    "lightning_modules": ("lightning_modules", "datamodules.batch"),
    "datamodules": ("datamodules",),
    "datamodules.batch": ("datamodules.batch",),
    "datamodules.formats": ("datamodules.formats", "datamodules.batch"),
    "datamodules.shards": ("datamodules.shards", "datamodules.formats", "datamodules.batch"),
    "datamodules.conversion": (
        "datamodules.conversion",
        "datamodules.shards",
        "datamodules.formats",
        "datamodules.batch",
    ),
    "datamodules.sampling": ("datamodules.sampling", "datamodules.batch"),
    "datamodules.benchmarks": ("datamodules.benchmarks", "datamodules.formats", "datamodules.batch"),
    "datamodules.synthetic": ("datamodules.synthetic", "datamodules.formats"),
    "callbacks": ("callbacks", "lightning_modules", "datamodules.batch", "datamodules.formats.atomic_files"),
    "callbacks.runtime": (
        "callbacks.runtime",
        "lightning_modules.training.seeding",
        "datamodules.formats.atomic_files",
    ),
    "experiments": ("experiments", "callbacks", "datamodules", "lightning_modules"),
    "experiments.engine": (
        "experiments.engine",
        "callbacks.runtime",
        "datamodules.formats.atomic_files",
        "datamodules.formats.codec_record",
        "lightning_modules.training.checkpoints",
        "lightning_modules.sharding",
    ),
    "experiments.jobs": ("experiments", "callbacks", "datamodules", "lightning_modules"),
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
            allowed = (*MAY_IMPORT[room], *FOR_ALL)
            assert any(is_within(imported, prefix) for prefix in allowed), f"{name} must not import {imported}"
        if any(is_within(name, pure) for pure in PURE_ROOMS):
            assert imported.split(".")[0] not in ("lightning", "pytorch_lightning"), f"{name} must not know Lightning"
    num_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES_OF.get(str(file.relative_to(ROOT)), MAX_LINES), f"{name} has {num_lines} lines"


def test_a_folder_holds_about_ten_files() -> None:
    counts = Counter(file.parent.relative_to(ROOT) for file in FILES if file.name != "__init__.py")
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_every_folder_says_what_lives_there() -> None:
    for folder in {file.parent for file in FILES}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text and len(text) > 20, f"{folder} has no package docstring"


def test_tests_mirror_the_tree() -> None:
    """A folder of tests is the folder that it tests."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        folder = file.parent.relative_to(ROOT / "tests")
        assert (ROOT / folder).is_dir(), f"{file} tests a folder that is not there"


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
