"""Rules of the source tree: directions of imports, names of modules, and operations on users' files
that are forbidden."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ssl_vivit", "recipes", "data_prep")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted(path for path in (ROOT / "tests").rglob("*.py"))]

# Rooms that every other may import: they know nothing of video, models or training.
GROUND = {
    f"ssl_vivit.{name}"
    for name in (
        "command", "errors", "evaluation_mode", "exported", "files", "first_failure", "grid",
        "lazy_names", "moments", "nested_text", "preprocessing", "run_lock",
        "settings", "wording",
    )
}  # fmt: skip
# What the files of a room may import of the project, beside their own room and the ground.
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set() for room in GROUND},
    "ssl_vivit": {"ssl_vivit.encoders", "ssl_vivit.pretrained"},
    "ssl_vivit.pretrained": {"ssl_vivit.encoders", "ssl_vivit.neural"},
    "ssl_vivit.data": set(),
    "data_prep": {"ssl_vivit.data"},
    "ssl_vivit.encoders": set(),
    "ssl_vivit.neural": {"ssl_vivit.encoders", "ssl_vivit.data"},
    "ssl_vivit.objectives": {"ssl_vivit.neural", "ssl_vivit.encoders", "ssl_vivit.data"},
    "ssl_vivit.training": {"ssl_vivit.objectives", "ssl_vivit.data"},
    "ssl_vivit.evaluation": {
        "ssl_vivit.training", "ssl_vivit.objectives", "ssl_vivit.neural", "ssl_vivit.encoders",
        "ssl_vivit.data",
    },
    "recipes": {
        "ssl_vivit.training", "ssl_vivit.evaluation", "ssl_vivit.objectives", "ssl_vivit.neural",
        "ssl_vivit.encoders", "ssl_vivit.data", "data_prep",
    },
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    """Return the package of a module, or its subpackage of ssl_vivit."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "ssl_vivit" else parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the modules of the project that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            # `from package import name` takes a module of the package where there is one.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] in PACKAGES}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = room_of(module_of(path))
    others = {name for name in imports_of(path) if room_of(name) != room}
    allowed = MAY_IMPORT[room] | GROUND
    wrong = sorted(name for name in others if room_of(name) not in allowed)
    assert not wrong, f"{module_of(path)} imports {', '.join(wrong)}"


def test_a_folder_has_at_most_fifteen_modules():
    counts = Counter(path.parent for path in SOURCES)
    full = {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > 15}
    assert not full


def test_modules_import_each_other_in_no_circle():
    """Imports inside functions and under TYPE_CHECKING count too."""
    above = {
        module: imports_of(path) & MODULES.keys() - {module} for module, path in MODULES.items()
    }
    while above:
        ground = {module for module, below in above.items() if not below & above.keys()}
        assert ground, f"a circle among {sorted(above)}"
        above = {module: below for module, below in above.items() if module not in ground}


def test_the_rules_themselves_have_no_circle():
    above = {room: set(below) for room, below in MAY_IMPORT.items() if room != "ssl_vivit"}
    while above:
        ground = {room for room, below in above.items() if not below & above.keys()}
        assert ground, f"a circle among {sorted(above)}"
        above = {room: below for room, below in above.items() if room not in ground}


def test_the_encoder_loads_without_the_rest_of_the_project():
    """At run time, importing the encoders loads only the packages that they need."""
    script = (
        "import sys, ssl_vivit\nssl_vivit.create_encoder\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in "
        f"{PACKAGES!r}), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rooms = {room_of(module) for module in done.stdout.split()}
    assert rooms <= {"ssl_vivit", "ssl_vivit.encoders", *GROUND}


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_no_vague_name(path):
    vague = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert not vague & {*path.relative_to(ROOT).with_suffix("").parts}


def hazards(text: str) -> list[str]:
    """Return lines that could execute the contents of a user's file."""
    found = []
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    # To know such an address by its start is how one is refused.
    refusals = {a for c in calls if ast.unparse(c.func).endswith(".startswith") for a in c.args}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        if {name.split(".")[0] for name in names} & {"pickle", "dill", "cloudpickle", "joblib"}:
            found.append(f"line {node.lineno}: imports {', '.join(names)}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if given.get("allow_pickle") == "True":
                found.append(f"line {node.lineno}: allow_pickle=True")
            if called == "yaml.load":
                found.append(f"line {node.lineno}: yaml.load; use yaml.safe_load")
        address = isinstance(node, ast.Constant) and str(node.value).startswith("pipe:")
        if address and node not in refusals:
            found.append(f"line {node.lineno}: a pipe address")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_files_that_can_execute(path):
    assert hazards(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "open('pipe:cat file')",
    ],
)
def test_hazards_are_seen(line):
    assert len(hazards(line)) == 1


def test_imports_inside_functions_are_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "def f():\n    from ssl_vivit import training\n    import ssl_vivit.data.video.loader\n"
        "    from ssl_vivit.encoders.vivit import ViViT\n"
    )
    expected = {"ssl_vivit.training", "ssl_vivit.data.video.loader", "ssl_vivit.encoders.vivit"}
    assert imports_of(file) == expected


def test_the_types_of_all_packages_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["mypy"]["files"] == [*PACKAGES, "examples"]


def test_the_configs_of_recipes_are_installed_with_them():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["recipes"]
    installed = {path for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}
    files = {path for path in (ROOT / "recipes" / "configs").rglob("*") if path.is_file()}
    assert len(files) > 10
    assert files == installed


def test_the_versions_of_python_agree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest, *_, newest = (name.split(" :: ")[-1] for name in settings["project"]["classifiers"])
    after = f"3.{int(newest.removeprefix('3.')) + 1}"
    assert settings["project"]["requires-python"] == f">={oldest},<{after}"
    assert settings["tool"]["mypy"]["python_version"] == oldest
    assert settings["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    low, high = (f"({version.replace('.', ', ')})" for version in (oldest, newest))
    makefile = (ROOT / "Makefile").read_text()
    assert f"{low} <= sys.version_info[:2] <= {high}" in makefile
    for page in (makefile, (ROOT / "README.md").read_text()):
        assert f"Python {oldest} to {newest}" in page
