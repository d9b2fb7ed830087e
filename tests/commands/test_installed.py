"""What ships with an installed package, where no checkout lies beside it."""

import shutil
import tomllib
from pathlib import Path

from tests.helpers.processes import run_python

ROOT = Path(__file__).resolve().parents[2]


def test_recipes_and_deepspeed_files_are_in_the_package(tmp_path: Path) -> None:
    """The package with the folders that the wheel puts into it, and nothing beside it: a recipe is read by its name
    with the reward's file and prompts that it names, and DeepSpeed's files are those of the checkout."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site = tmp_path / "site"
    no_data = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.bin")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=no_data)
    for source, destination in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / destination, ignore=no_data)
    script = f"""
import sys
sys.path.insert(0, {str(site)!r})
from pathlib import Path
import memdiff
assert Path(memdiff.__file__).is_relative_to({str(site)!r})
from memdiff.engine.ds_config import SHIPPED
from memdiff.recipe.reading import read_recipe
from memdiff.recipe.shipped import shipped_recipes
from memdiff.runtime.shipped_folder import shipped_folder
for name in shipped_recipes():
    recipe = read_recipe(Path(name))
    assert all(Path(part.file).is_file() for part in recipe.reward if part.kind == "python"), name
print(*shipped_recipes())
print(*sorted(file.name for file in shipped_folder(SHIPPED).glob("*.json")))
"""
    (tmp_path / "elsewhere").mkdir()
    done = run_python("-c", script, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    recipes, files = (line.split() for line in done.stdout.splitlines())
    assert recipes and recipes == sorted(file.stem for file in (ROOT / "launch/recipes").glob("*.yaml"))
    assert files and files == sorted(file.name for file in (ROOT / "ds_configs").glob("*.json"))
