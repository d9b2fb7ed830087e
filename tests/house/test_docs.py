"""The documentation is built without a warning, and what it says of the code is so."""

import ast
import html
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import commands
from docs.generate.messages import ERRORS, MARKER, PACKAGE, VARIES, all_words, messages
from docs.generate.recipe_keys import PAGE, recipe_page
from memdiff.recipe.reading import check_recipe
from memdiff.recipe.schema import recipe_schema
from memdiff.recipe.synonyms import KEYS
from tests.helpers.processes import run
from tests.house.rooms import ORDER, ROOT

DOCS = ROOT / "docs"
TROUBLE = (DOCS / "troubleshooting.md").read_text()
COMING = (DOCS / "coming_from.md").read_text()
FEWEST_LETTERS = 8  # of an entry's fixed words: less is found anywhere
ENVIRONMENT = {
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1",
}  # fmt: skip


def grouped_files() -> list[str]:
    """The files that the groups of the troubleshooting page name."""
    return [file for marker in MARKER.finditer(TROUBLE) for file in marker[1].split()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. Broken links, missing anchors and pages outside the navigation are warnings, which end it."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = run(words, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def text_of(page: Path) -> str:
    """What a reader sees, on one line."""
    return plain(html.unescape(re.sub(r"<[^>]+>", "", page.read_text())))


def letters(text: str) -> int:
    """How many letters a text has."""
    return sum(map(str.isalpha, text))


def plain(text: str) -> str:
    """On one line, without what marks code."""
    return " ".join(text.replace("`", "").split())


def test_the_site_holds_every_key_and_every_message(site: Path) -> None:
    """The pages that are made of the code, as a reader meets them; and nothing is fetched from elsewhere."""
    schema = recipe_schema()
    recipe = text_of(site / "recipe.html")
    for section in (schema, *schema["$defs"].values()):
        for name, key in section.get("properties", {}).items():
            assert name in recipe, name
            if name != "kind" and section is not schema and "$ref" not in key:
                assert plain(key["description"]) in recipe, (name, key["description"])
    trouble = text_of(site / "troubleshooting.html")
    for file, said in messages().items():
        for message in said:
            assert plain(message) in trouble, f"{file}: {message}"
    for page in site.glob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]*stylesheet[^>]*href)="(https?://[^"]+)"', page.read_text())
        assert fetched == [], page


def test_the_page_of_keys_is_the_schemas() -> None:
    """It lies in docs, so that links lead to it on a forge too: `python -m docs.generate.recipe_keys` writes it."""
    assert PAGE.read_text(encoding="utf-8") == recipe_page()


def test_every_error_stands_in_one_group() -> None:
    """A file whose errors a user can meet is named in one group of troubleshooting.md, and in no other."""
    files = grouped_files()
    assert sorted(files) == sorted(set(files)), "a file stands in two groups"
    missing, gone = set(messages()) - set(files), set(files) - set(messages())
    assert not missing, f"name these in a group of docs/troubleshooting.md: {sorted(missing)}"
    assert not gone, f"these say nothing any more; take them out of docs/troubleshooting.md: {sorted(gone)}"


def test_no_error_is_overlooked() -> None:
    """Each call that makes an error with words of its own is among the messages: counted apart from the reader, by
    the first fixed words of its text."""
    overlooked = []
    for file in sorted(PACKAGE.rglob("*.py")):
        listed = " ".join(messages().get(str(file.relative_to(PACKAGE)), []))
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS):
                continue
            for text in node.args[:1]:
                constants = [part.value for part in ast.walk(text) if isinstance(part, ast.Constant)]
                parts = [" ".join(part.split()) for part in constants if isinstance(part, str)]
                own = [part for part in parts if letters(part) >= FEWEST_LETTERS]
                direct = isinstance(text, ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp)
                if direct and own and not any(part in listed for part in own):
                    overlooked.append(f"{file.name}:{node.lineno} {own[0]}")
    assert overlooked == []


def test_quoted_messages_are_the_codes_own() -> None:
    """What an entry quotes in bold are words of the source, in their order; between them stands …."""
    entries = re.findall(r"\*\*`([^`]+)`\*\*", " ".join(TROUBLE.split()))
    assert len(entries) >= 25
    source = all_words()
    for entry in entries:
        fixed = [part.strip(" ;.:") for part in entry.split(VARIES)]
        assert [part for part in fixed if letters(part) >= FEWEST_LETTERS and part not in source] == [], entry
        assert max(map(letters, fixed)) >= 5, entry


def test_every_command_is_run_or_says_why_not() -> None:
    """A comment before each block of bash or Python; recipes among the blocks are right."""
    for page in commands.PAGES:
        for block in commands.blocks(page):
            where = f"{page.name}, line {block.line}"
            if block.is_command:
                assert block.when != "unmarked", f"{where}: mark it run, run: slow or not run: REASON"
                assert block.when != "never" or len(block.reason.split()) >= 3, where
        languages = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)[::2]
        assert "" not in languages, f"{page.name}: give each block a language; text for what is no command"
    assert sum(block.when == "cheap" for page in commands.PAGES for block in commands.blocks(page)) >= 3


@pytest.mark.parametrize("page", [page for page in commands.PAGES if "<!-- run -->" in page.read_text()], ids=str)
def test_commands_that_take_no_time(page: Path, tmp_path: Path) -> None:
    """Run as a reader would, in their order, in an empty folder."""
    run_page(page, tmp_path, ("cheap",))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in commands.PAGES if "<!-- run: slow -->" in page.read_text()], ids=str)
def test_commands_of_a_page(page: Path, tmp_path: Path) -> None:
    """All that can be run here: trainings of a few rounds, plans, samples, reports."""
    run_page(page, tmp_path, ("cheap", "slow"))


def test_readme_can_be_read_in_an_editor() -> None:
    """Its text has at most 120 columns; rows of tables can't be broken."""
    lines = (commands.ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def run_page(page: Path, folder: Path, when: Any) -> None:
    """The page's script in bash. Its blocks may exit with 0 alone."""
    done = run(["bash", "-c", commands.script(page, when)], cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_recipes_of_the_pages_are_right(tmp_path: Path) -> None:
    """Whole recipes are checked with the files that stand before them on their page."""
    whole = 0
    for page in commands.PAGES:
        for block in commands.blocks(page):
            if block.title:
                (tmp_path / block.title).write_text(block.text)
            if block.language == "yaml" and block.title:
                check_recipe(yaml.safe_load(block.text), source=block.title, folder=tmp_path)
                whole += 1
    assert whole >= 2


# The fields of TRL 0.23.1's DDPOConfig and AlignPropConfig (trl/trainer/ddpo_config.py, alignprop_config.py).
BOTH = """exp_name run_name seed log_with tracker_kwargs accelerator_kwargs project_kwargs tracker_project_name logdir
    num_epochs save_freq num_checkpoint_limit mixed_precision allow_tf32 resume_from sample_num_steps sample_eta
    sample_guidance_scale train_batch_size train_use_8bit_adam train_learning_rate train_adam_beta1 train_adam_beta2
    train_adam_weight_decay train_adam_epsilon train_gradient_accumulation_steps train_max_grad_norm negative_prompts
    push_to_hub"""
DDPO = """sample_batch_size sample_num_batches_per_epoch train_num_inner_epochs train_cfg train_adv_clip_max
    train_clip_range train_timestep_fraction per_prompt_stat_tracking per_prompt_stat_tracking_buffer_size
    per_prompt_stat_tracking_min_count async_reward_computation max_workers"""
ALIGNPROP = "log_image_freq truncated_backprop_rand truncated_backprop_timestep truncated_rand_backprop_minmax"


def table_rows(heading: str) -> list[tuple[set[str], str]]:
    """Of the section's table: the names in the first column, and what stands in the second."""
    section = COMING.partition(f"## {heading}")[2].partition("\n## ")[0]
    cells = [row.strip("|").split(" | ") for row in section.splitlines() if row.startswith("| `")]
    return [(set(re.findall(r"`([^`]+)`", first)), second) for first, second, *_ in cells]


def test_every_argument_of_trl_has_its_row() -> None:
    """All fields, and no other name; where a recipe's own hint knows the name, both say the same key."""
    ddpo, alignprop = table_rows("TRL: `DDPOConfig`"), table_rows("TRL: `AlignPropConfig`")
    assert set().union(*(names for names, _ in ddpo)) == {*BOTH.split(), *DDPO.split()}
    assert set().union(*(names for names, _ in alignprop)) == set(ALIGNPROP.split())
    for names, here in (*ddpo, *alignprop):
        for name in names:
            hint = KEYS.get(name, "")
            assert " " in hint or not hint or f"`{hint}`" in here or "leave out" in here or "--" in here, (name, hint)


def dotted_keys() -> set[str]:
    """Every key of a recipe with its section, whatever the kind."""
    schema = recipe_schema()
    keys = set(schema["properties"])
    for name, key in schema["properties"].items():
        for reference in re.findall(r"#/\$defs/(\w+)", repr(key)):
            keys |= {f"{name}.{inner}" for inner in schema["$defs"][reference].get("properties", {})}
    return keys


def test_keys_that_pages_name_are_there() -> None:
    """`section.key` in code is a key of a recipe."""
    keys = dotted_keys()
    sections = "|".join(recipe_schema()["properties"])
    for page in commands.PAGES:
        if page.name == "reliability.md":
            continue
        named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", page.read_text()))
        assert {name for name in named if not name.endswith(("_", ".py"))} <= keys, page.name


def test_choices_are_all_listed() -> None:
    """Methods, rewards and memory knobs: each has its row on its page."""
    definitions = recipe_schema()["$defs"]
    kinds: dict[str, set[str]] = {"methods.md": set(), "rewards.md": set()}
    for name, page in (("method", "methods.md"), ("reward", "rewards.md")):
        key = recipe_schema()["properties"][name]
        kinds[page] = set(key.get("items", key)["discriminator"]["mapping"])
    kinds["fitting_a_card.md"] = set(definitions["MemoryConfig"]["properties"])
    for page, names in kinds.items():
        rows = " ".join(line for line in (DOCS / page).read_text().splitlines() if line.startswith("| "))
        assert {name for name in names if f"`{name}`" not in rows} == set(), page


def test_the_picture_shows_every_room() -> None:
    """Those of the tests' order of imports, from the highest to the lowest."""
    shown = re.findall(r'font-weight="600"[^>]*>(\w+)</text>', (DOCS / "images/figure_rooms.svg").read_text())
    assert shown == [room for line in reversed(ORDER) for room in line if room != "__main__"]
