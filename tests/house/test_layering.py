"""The rooms of the package and the one direction of imports."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import run_python

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "memdiff"

# A file imports only from entries above its own and from its own room. The longest entry that a module's name starts
# with is its own, so that a file can stand elsewhere than its room. Entries on one line may not import each other.
ORDER = (
    ("errors", "section", "counted", "host_memory", "cuda_allocator", "numbered"),
    ("placement", "ranks", "guarded", "image_files", "processes", "state_dicts"),
    ("chain",),
    ("pieces",),
    ("embedded",),
    ("models",),
    ("rewards",),
    ("memory",),
    ("objectives",),
    ("engine",),
    ("report", "doctor"),
    ("prompts",),
    ("config",),
    ("recipe_file", "contents", "recipe_model"),
    ("plan",),  # runs objectives on fake tensors, so that it stands above them; memory/ below holds what they use
    ("run_folder", "standing", "progress"),
    ("launcher", "environment"),
    ("build", "sample_source"),
    ("evaluate", "sample_request", "score_request"),
    ("metrics", "sample", "score"),
    ("train", "sampling_processes"),
    ("cli",),
    ("__main__",),
)
FENCED = {
    "diffusers": (
        "models",
        *("embedded.build", "embedded.training", "embedded.measure"),
        *("embedded.text_model", "embedded.text_training", "embedded.measure_text"),
    ),
    "peft": ("models",),
    "deepspeed": ("engine", "doctor.devices"),  # which asks it for devices and precisions, in a child process
    "bitsandbytes": ("engine",),
}
HEAVY = ("torch", "diffusers", "deepspeed", "transformers", "peft", "matplotlib", "bitsandbytes", "sklearn")
# Besides every file that says so in its first docstring.
LIGHT = (
    "errors",
    "section",
    "config",
    "recipe_file",
    "run_folder",
    "launcher",
    "sampling_processes",
    "cli",
    "report.grid",
    "report.rows",
    "embedded.paths",
)


def module_name(file: Path) -> str:
    """memdiff/chain/ddim.py -> chain.ddim; memdiff/chain/__init__.py -> chain; the package's own: empty."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def entry_of(module: str) -> str | None:
    """The longest entry of ORDER that is the module or a room around it."""
    entries = [entry for line in ORDER for entry in line if module == entry or module.startswith(f"{entry}.")]
    return max(entries, key=len, default=None)


def rank_of(entry: str) -> int:
    return next(number for number, line in enumerate(ORDER) if entry in line)


def is_main_block(node: ast.AST) -> bool:
    """`if __name__ == "__main__":` is a program of its own, which is never imported and may use anything."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imports_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(full name, line) of everything that is imported anywhere in a file, function bodies included."""
    waiting: list[ast.AST] = [node for node in tree.body if not is_main_block(node)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def own_module(imported: str) -> str | None:
    """The module of memdiff that an import reaches (`memdiff.chain.ddim.log_prob` -> `chain.ddim`), or None."""
    top, _, rest = imported.partition(".")
    if top != "memdiff":
        return None
    while rest and rest not in FILES:
        rest = rest.rpartition(".")[0]
    return rest


def allowed(importer: str, imported: str) -> bool:
    """Whether one module may import another."""
    if imported == "":
        return True  # memdiff/__init__.py: the version
    mine, theirs = entry_of(importer), entry_of(imported)
    assert mine and theirs
    return mine == theirs or rank_of(theirs) < rank_of(mine)


def test_every_file_has_a_place():
    """A new top-level file or room is put into ORDER before it is used, and no entry outlives its files."""
    assert [module for module in FILES if module and entry_of(module) is None] == []
    used = {entry_of(module) for module in FILES if module}
    assert {entry for line in ORDER for entry in line} - used <= {"embedded.demo"}


def test_the_rules_can_fail():
    """The checker itself: a lower room is refused, an upper one and the own room are not, a lazy import counts."""
    assert not allowed("chain.ddim", "models.policy") and allowed("models.policy", "chain.ddim")
    assert allowed("chain.ddim", "chain.schedule") and not allowed("launcher", "environment")
    assert not allowed("pieces", "models.config") and allowed("config", "engine.config")
    tree = ast.parse(
        "def f():\n    from memdiff.cli import app\nif __name__ == '__main__':\n    import memdiff.training.loop\n"
    )
    assert list(imports_of(tree)) == [("memdiff.cli.app", 2)]
    assert own_module("memdiff.chain.ddim.log_prob") == "chain.ddim" and own_module("torch.nn") is None


def test_imports_go_one_way():
    """A file imports only from rooms above it, wherever in the file the import stands."""
    wrong = []
    for module, file in FILES.items():
        for imported, line in imports_of(ast.parse(file.read_text())):
            target = own_module(imported)
            if target is not None and module and not allowed(module, target):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports memdiff.{target}")
    assert wrong == []


def test_no_two_modules_import_each_other():
    """No circle of imports, not even a lazy one or one inside a room: each file can be read after those it uses."""
    graph = {
        module: {target for name, _ in imports_of(ast.parse(file.read_text())) if (target := own_module(name))}
        for module, file in FILES.items()
    }
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert graph == {}


@pytest.mark.parametrize("library", FENCED)
def test_big_libraries_are_fenced(library: str):
    """diffusers and peft are known to one room, deepspeed to another (and what each exception is for stands above)."""
    users = {
        module
        for module, file in FILES.items()
        for imported, _ in imports_of(ast.parse(file.read_text()))
        if imported.split(".")[0] == library
    }
    strangers = [m for m in users if not any(m == room or m.startswith(f"{room}.") for room in FENCED[library])]
    assert strangers == []


def test_init_files_hold_a_docstring_alone():
    """Importing one file of a room loads that file and not the room. The package's own holds the version beside it."""
    for file in sorted(PACKAGE.rglob("__init__.py")):
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), f"{file.relative_to(ROOT)} has no docstring"
        rest = [ast.unparse(node).partition(" ")[0] for node in tree.body[1:]]
        assert rest == (["__version__"] if file.parent == PACKAGE else []), file.relative_to(ROOT)


def test_sections_know_pydantic_and_light_files_alone():
    """A room's config.py imports the standard library, pydantic, and of ours what says that it loads no torch."""
    for module, file in FILES.items():
        if not module.endswith(".config"):
            continue
        names = [name for name, _ in imports_of(ast.parse(file.read_text()))]
        others = {name.split(".")[0] for name in names} - {"memdiff", "pydantic"} - set(sys.stdlib_module_names)
        own = {target for name in names if (target := own_module(name)) is not None}
        assert others == set(), file
        assert own <= {light for light in FILES if is_light(light)}, file


def is_light(module: str) -> bool:
    """Sections, and files whose first docstring says so. The test below holds them to it."""
    docstring = ast.get_docstring(ast.parse(FILES[module].read_text())) or ""
    return module in LIGHT or module.endswith("config") or "No torch" in docstring


def test_light_files_load_nothing_heavy():
    """A mistake in a recipe is told before torch is loaded: whatever reads recipes, and the command line, is light."""
    light = [module for module in FILES if is_light(module)]
    assert {*LIGHT} <= {*light}
    script = f"""
import importlib, sys
for module in {light}:
    importlib.import_module("memdiff." + module)
    heavy = [library for library in {HEAVY} if library in sys.modules]
    if heavy:
        sys.exit(f"memdiff.{{module}} loads {{heavy}}")
"""
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
