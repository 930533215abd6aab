"""What the Markdown files say is there: links, pictures, classes and their arguments, commands."""

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from experiments.engine.configuration import config

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("lightning_modules", "datamodules", "callbacks", "experiments")
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
PICTURES = sorted((ROOT / "experiments" / "pictures").glob("*.svg"))
MAX_README_LINES = 160
DECODING = "lightning_modules.talker.decoding.decoding.Decoding"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(text: str, *languages: str) -> list[str]:
    return [content for language, content in FENCE.findall(text) if language in languages]


def anchors(text: str) -> set[str]:
    """Return what links may name in a page, as GitHub makes it of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def broken_links(text: str, folder: Path) -> list[str]:
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else None
        if target is not None and not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(FENCE.sub("", text if target is None else target.read_text())):
            broken.append(link)
    return broken


def module_file(parts: list[str]) -> tuple[Path, list[str]]:
    """Find the file of a dotted path without importing it; return it and the names that are looked up in it."""
    folder = ROOT
    if parts[0] not in ROOMS:
        spec = importlib.util.find_spec(parts[0])
        assert spec is not None and spec.origin is not None, f"there is no package {parts[0]}"
        folder = Path(spec.origin).parent.parent
    for number, part in enumerate(parts, start=1):
        if (folder / f"{part}.py").is_file():
            return folder / f"{part}.py", parts[number:]
        if not (folder / part).is_dir():
            return folder / "__init__.py", parts[number - 1 :]
        folder /= part
    return folder / "__init__.py", []


def find(class_path: str) -> ast.AST:
    """Return the syntax of a class, function, method, or import that a dotted path names.

    Raises:
        LookupError: If there is none.
    """
    file, names = module_file(class_path.split("."))
    node: Any = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() and names else None
    for name in names:
        found = [one for one in getattr(node, "body", ()) if name in names_of(one)]
        if not found and isinstance(node, ast.ClassDef):
            return find(f"{base_of(file, node)}.{name}")
        if not found:
            node = None
            break
        node = found[0]
    if node is None:
        raise LookupError(f"there is no {class_path}")
    return node


def base_of(file: Path, node: ast.ClassDef) -> str:
    """Return the dotted path of the first base of a class, which the file imports.

    Raises:
        LookupError: If there is none.
    """
    base = node.bases[0].id if node.bases and isinstance(node.bases[0], ast.Name) else None
    for one in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(one, ast.ImportFrom) and base in names_of(one):
            return f"{one.module}.{base}"
    raise LookupError(f"{node.name} inherits nothing that {file} imports")


def names_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()


def arguments_of(node: ast.AST) -> set[str] | None:
    """Return the arguments that a class or function takes; None if they are written down elsewhere."""
    if isinstance(node, ast.ClassDef):
        constructors = [one for one in node.body if "__init__" in names_of(one)]
        fields = {
            one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
        return arguments_of(constructors[0]) if constructors else fields or None
    if isinstance(node, ast.FunctionDef):
        return {one.arg for one in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
    return None


def specs(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk through YAML and give each class_path with its init_args, and each decoding with its settings."""
    if isinstance(node, list):
        for one in node:
            yield from specs(one)
    if isinstance(node, dict):
        if "class_path" in node:
            yield node["class_path"], node.get("init_args", {})
        for key, value in node.items():
            if key == "decodings":
                yield from ((DECODING, settings) for settings in value.values())
            yield from specs(value)


def unknown_parts(text: str) -> list[str]:
    """Return the classes and arguments of a YAML text that do not exist."""
    unknown = []
    for class_path, arguments in specs(yaml.safe_load(text)):
        try:
            known = arguments_of(find(class_path))
        except LookupError as error:
            unknown.append(str(error))
            continue
        if known is not None:
            unknown += [f"{class_path} has no {argument}" for argument in arguments if argument not in known]
    return unknown


def commands(text: str) -> Iterator[list[str]]:
    """Give the words of each command line of run.py or report.py."""
    lines = "\n".join(fences(text, "bash")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(python experiments/[^`]+)`", FENCE.sub("", text).replace("\n", " "))
    for line in (*lines, *inline):
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["python"] and words[1] in ("experiments/run.py", "experiments/report.py"):
                yield words


@functools.cache
def compose(name: str, overrides: tuple[str, ...]) -> None:
    """Raise ConfigError if there is no such experiment, stage or key."""
    config.compose(config.find_file(name, ROOT), list(overrides))


@every_page
def test_links_and_pictures_are_there(page: Path) -> None:
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@every_page
def test_yaml_names_classes_and_arguments_that_exist(page: Path) -> None:
    for text in fences(page.read_text(encoding="utf-8"), "yaml"):
        assert unknown_parts(text) == []


@every_page
def test_classes_in_prose_exist(page: Path) -> None:
    for class_path in re.findall(rf"`((?:{'|'.join(ROOMS)})\.[\w.]+\.[A-Z]\w*)`", page.read_text(encoding="utf-8")):
        find(class_path)


@every_page
def test_commands_name_experiments_and_keys_that_exist(page: Path) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        names = [word for word in words[2:] if re.fullmatch(r"[a-z]\w*", word)]
        overrides = tuple(word for word in words[2:] if "=" in word and not word.startswith("seed="))
        for name in names or ["quickstart"]:
            compose(name, overrides)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_every_table_of_results_has_its_command() -> None:
    text = (ROOT / "experiments" / "RESULTS.md").read_text(encoding="utf-8")
    sections = re.split(r"^##+ ", text, flags=re.MULTILINE)
    with_tables = [section for section in sections if "\n|---" in section]
    assert len(with_tables) > 5
    claims = [section for section in with_tables if section.startswith("Claims\n")]
    rows = [line for line in claims[0].splitlines() if line.startswith("| ")]
    assert len(rows) > 8 and all("](#" in row for row in rows[1:]), "a claim names the section of its command"
    for section in with_tables:
        if section in claims:
            continue
        assert "python experiments/run.py" in section or "```bash\npython - <<" in section, (
            f"{section.splitlines()[0]}: a table without a command"
        )


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_drawing_is_readable_on_any_background(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    tag = "{http://www.w3.org/2000/svg}"
    background = root.find(f"{tag}rect")
    assert background is not None and background.attrib["fill"] == "#ffffff"
    assert float(background.attrib["width"]) >= width - 4 and float(background.attrib["height"]) >= height - 4
    assert root.findtext(f"{tag}title") and root.findtext(f"{tag}desc")
    for text in root.iter(f"{tag}text"):
        assert 0 < float(text.attrib["x"]) < width and 0 < float(text.attrib["y"]) < height


def test_mistakes_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One heading, `of` code\n")
    links = "[a](other.md) [b](other.md#one-heading-of-code) [c](gone.md) ![d](gone.png) [e](other.md#two) [f](#none)"
    assert broken_links(links, tmp_path) == ["gone.md", "gone.png", "other.md#two", "#none"]
    known = "{class_path: lightning_modules.talker.masking.schemes.GlobalBernoulli, init_args: {low: 0.1, hihg: 0.2}}"
    assert unknown_parts(known) == ["lightning_modules.talker.masking.schemes.GlobalBernoulli has no hihg"]
    assert unknown_parts("x: [{class_path: lightning_modules.talker.masking.Gone}]") != []
    assert unknown_parts("decodings: {a: {talker: mdm, steps: 4}}") == [f"{DECODING} has no steps"]
    with pytest.raises(config.ConfigError, match="no such stage"):
        compose("quickstart", ("stages.talker.trainer.devices=2",))
    assert list(commands("```bash\ncd x && python experiments/run.py a \\\n  b=1 # c\n```")) == [
        ["python", "experiments/run.py", "a", "b=1"]
    ]
