"""The rooms of the package and the one direction of imports."""

import ast
import sys

import pytest

from tests.helpers.processes import run_python
from tests.house.rooms import FILES, ORDER, PACKAGE, ROOT, imports_of, line_of, modules_imported_by, own_module, room_of

FENCED = {
    "diffusers": ("models",),
    "peft": ("models",),
    "deepspeed": ("engine", "doctor.devices"),  # which asks it for devices and precisions, in a child process
    "bitsandbytes": ("engine",),
}
HEAVY = ("torch", "diffusers", "deepspeed", "transformers", "peft", "matplotlib", "bitsandbytes", "sklearn")
# Besides every file that says so in its first docstring.
LIGHT = (
    "errors",
    "runtime.section",
    "recipe.recipe",
    "recipe.reading",
    "training.run_folder",
    "training.launcher",
    "sampling.processes",
    "cli",
    "library",
    "reporting.grid",
    "reporting.rows",
    "digits.paths",
)


def allowed(importer: str, imported: str) -> bool:
    """Whether one module may import another."""
    mine, theirs = room_of(importer), room_of(imported)
    return mine == theirs or line_of(theirs) < line_of(mine)


def test_every_room_has_a_place():
    """A new room is put into ORDER before it is used, and no entry outlives its files."""
    assert {room_of(module) for module in FILES if module} == {room for line in ORDER for room in line}


def test_the_root_holds_the_command_line_the_library_and_the_errors():
    """Whatever else there is belongs to a room."""
    names = {"__init__", "__main__", "cli", "errors", "library"}
    assert {file.stem for file in PACKAGE.glob("*.py")} == names


def test_the_rules_can_fail():
    """The checker itself: a lower room is refused, an upper one and the own room are not, a lazy import counts."""
    assert not allowed("chain.ddim", "models.policy") and allowed("models.policy", "chain.ddim")
    assert allowed("chain.ddim", "chain.schedule") and not allowed("sampling.sample", "scoring.score")
    assert not allowed("runtime.vjp", "models.config") and allowed("recipe.recipe", "engine.config")
    tree = ast.parse(
        "def f():\n    from memdiff.cli import app\nif __name__ == '__main__':\n    import memdiff.training.loop\n"
    )
    assert list(imports_of(tree)) == [("memdiff.cli.app", 2)]
    assert own_module("memdiff.chain.ddim.log_prob") == "chain.ddim" and own_module("torch.nn") is None


def test_imports_go_one_way():
    """A file imports only from rooms above it, wherever in the file the import stands."""
    wrong = [
        f"{module} imports {target}"
        for module in FILES
        for target in modules_imported_by(module)
        if module and not allowed(module, target)
    ]
    assert wrong == []


def test_no_two_modules_import_each_other():
    """No circle of imports, not even a lazy one or one inside a room: each file can be read after those it uses."""
    graph = {module: modules_imported_by(module) for module in FILES}
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
    """Importing one file of a room loads that file and not the room. The package's own offers the library."""
    for file in sorted(PACKAGE.rglob("__init__.py")):
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), f"{file.relative_to(ROOT)} has no docstring"
        rest = [ast.unparse(node).partition(" ")[0] for node in tree.body[1:]]
        assert rest == (["from", "__version__", "__all__"] if file.parent == PACKAGE else []), file.relative_to(ROOT)


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
