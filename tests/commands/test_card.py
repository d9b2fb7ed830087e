"""A saved model says what it is: a card that the hub reads, whose code runs, that tells nothing of this machine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from memdiff.digits.paths import DIGITS_DDPM
from memdiff.models.quiet import quiet_libraries
from memdiff.recipe.reading import check_recipe, read_recipe
from memdiff.recipe.shipped import shipped_recipes
from memdiff.reporting.card import CARD, CURVES, card, portable
from memdiff.reporting.loading import PLACE, diffusers_code
from memdiff.training.saved_model import describe_model

quiet_libraries()
ROWS = [{"round": 0, "evaluate/reward_mean": 1.0}] + [
    {"round": number, "images": 4 * number, "reward_mean": 0.5 * number, "evaluate/reward_mean": 1.0 + number}
    for number in (1, 2, 3)
]
ENVIRONMENT = {"memdiff": "0.1.0", "torch": "2.13.0", "device": "Tesla T4", "commit": None}


def card_of(recipe: Any) -> str:
    return card(recipe, ROWS, ENVIRONMENT, trained_round=2, has_curves=True)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_makes_a_card(name: str) -> None:
    """The hub's own reader takes it; its code is Python; its recipe is the run's; it names no folder from here."""
    file = shipped_recipes()[name]
    recipe = read_recipe(file)
    text = card_of(recipe)
    data: Any = ModelCard(text).data
    is_text = recipe.model.kind != "ddpm" and getattr(recipe.model, "name", "") != "digits"
    assert data.library_name == "diffusers" and recipe.method.kind in (data.tags or [])
    assert data.pipeline_tag == ("text-to-image" if is_text else "unconditional-image-generation")
    assert data.to_dict().get("base_model") == (recipe.model.path if recipe.model.kind != "embedded" else None)
    assert str(file.parent) not in text and str(Path.home()) not in text
    assert "| rounds | 2 of" in text and "| images seen | 8 |" in text and "1 at first, 4 at last" in text
    code = diffusers_code(recipe)
    compile(code, "card", "exec")
    assert (code in text) and (code or recipe.sampler.sub_schedule)
    block = re.search(r"^(`{3,})yaml\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    said = yaml.safe_load(block[2])
    assert said == portable(recipe)
    if "file" not in block[2]:
        assert check_recipe(said, source="the card") == recipe


def test_hostile_words_stay_words() -> None:
    """Prompts that would be a table, a heading, HTML, other metadata or the end of the code block."""
    evil = "x | y\n# owned <script>alert(1)</script> [a](javascript:b) ```` `"
    base = read_recipe(shipped_recipes()["digits_text_ddpo"]).model_dump(mode="json")
    prompts = base["prompts"] | {"texts": [evil + "\n---\nlicense: mit"], "file": None}
    sampler = base["sampler"] | {"negative_prompt": evil}
    recipe = check_recipe(base | {"prompts": prompts, "sampler": sampler}, source="test")
    text = card_of(recipe)
    data = ModelCard(text).data.to_dict()
    assert "license" not in data and data["pipeline_tag"] == "text-to-image"
    prose = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text.partition("---\n\n")[2], flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in prose and "\n# owned" not in prose and "[a](" not in prose.replace("\\[a](", "")
    assert re.findall(r"^#+ .*", prose, re.MULTILINE)[1:] == [
        "## Load it", "## How it was sampled in training", "## Limits", "## Recipe", "## Versions"
    ]  # fmt: skip


def test_the_code_on_the_card_runs() -> None:
    """With the folder's name filled in, on the model that ships: an image of its size."""
    recipe = read_recipe(shipped_recipes()["digits_reinforce"], ("sampler.steps=2",))
    names: dict[str, Any] = {}
    code = diffusers_code(recipe).replace(PLACE, str(DIGITS_DDPM))
    exec(code.replace("image = ", "pipeline.set_progress_bar_config(disable=True)\nimage = "), names)
    assert names["image"].size == (16, 16)


def test_a_saved_model_is_described_and_others_may_read_it(tmp_path: Path) -> None:
    """safetensors writes files for their owner alone; peft leaves the base's name out."""
    recipe = read_recipe(shipped_recipes()["sd15_draft_t4"])
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter" / "adapter_config.json"
    weights.write_bytes(b"0")
    weights.chmod(0o600)
    config.parent.mkdir()
    config.write_text(json.dumps({"base_model_name_or_path": None, "r": 4}))
    describe_model(tmp_path, recipe, ROWS, ENVIRONMENT, trained_round=3)
    said = json.loads(config.read_text())
    assert said == {"base_model_name_or_path": recipe.model.path, "r": 4}  # pyright: ignore
    fresh = tmp_path / "fresh"
    fresh.touch()
    modes = {file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {fresh.stat().st_mode}
    assert f"]({CURVES})" in (tmp_path / CARD).read_text() and (tmp_path / CURVES).read_bytes()[:4] == b"\x89PNG"
    describe_model(tmp_path, recipe, ROWS[:1], {}, trained_round=0)
    assert CURVES not in (tmp_path / CARD).read_text()  # of one point there is no curve
