"""Which image gets which text, and prompt files that are right, wrong or no text at all."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from memdiff.chain.noise import Stream
from memdiff.errors import ConfigError
from memdiff.recipe.prompts import STREAM, PromptsConfig, PromptSet, read_prompt_file
from memdiff.recipe.reading import check_recipe, read_recipe, recipe_hash
from memdiff.recipe.recipe import Recipe

TEXTS = tuple("abcdefg")
RECIPE = """\
model: {kind: embedded, name: digits_text}
method: {kind: reinforce}
reward: [{kind: digits}]
prompts: PROMPTS
"""


def recipe_of(folder: Path, prompts: str, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.replace("PROMPTS", prompts))
    return read_recipe(file, overrides)


def test_every_text_comes_equally_often():
    """After any number of rounds the counts differ by one at most; after a whole pass not at all."""
    prompts, seen = PromptSet(TEXTS), Counter()
    for round_number in range(1, 15):  # 14 rounds of 5 images are 10 passes through 7 texts
        seen.update(prompts.of(3, round_number, range(5), 5))
        counts = [seen[text] for text in TEXTS]
        assert max(counts) - min(counts) <= 1
    assert set(seen.values()) == {10}


def test_passes_are_shuffled_anew():
    """Seven texts, seven images a round: every round is a permutation, and rounds and seeds differ."""
    prompts = PromptSet(TEXTS)
    orders = [tuple(prompts.of(seed, round_number, range(7), 7)) for seed in (0, 1) for round_number in range(1, 11)]
    assert all(sorted(order) == list(TEXTS) for order in orders)
    assert len(set(orders)) == len(orders)


def test_an_image_keeps_its_text_on_any_ranks():
    """A function of (seed, round, image): blocks of ranks, single images and another order ask for the same."""
    prompts = PromptSet(TEXTS, images_per_prompt=3)
    whole = prompts.of(1, 4, range(12), 12)
    assert prompts.of(1, 4, range(5), 12) + prompts.of(1, 4, range(5, 12), 12) == whole
    assert [prompts.of(1, 4, [image], 12)[0] for image in reversed(range(12))] == whole[::-1]
    assert PromptSet(TEXTS, images_per_prompt=3).of(1, 4, range(12), 12) == whole


def test_consecutive_images_share_a_text():
    """images_per_prompt 4: twelve images have three texts, in runs of four, and texts still come equally often."""
    prompts, seen = PromptSet(TEXTS, images_per_prompt=4), Counter()
    for round_number in range(1, 8):
        texts = prompts.of(0, round_number, range(12), 12)
        assert all(len(set(texts[start : start + 4])) == 1 for start in (0, 4, 8))
        seen.update(texts)
    assert set(seen.values()) == {12}


def test_the_order_is_fixed_for_all_time():
    """A resumed run must see what the first one saw: worked out once, written down."""
    assert PromptSet(TEXTS).of(0, 1, range(7), 7) == EXPECTED
    assert STREAM == Stream.PROMPTS


EXPECTED = list("dcagbfe")


def test_evaluation_takes_held_out_texts_in_turn():
    """Those that are held out, else training's own; never shuffled. Without any: the empty text."""
    assert PromptSet(TEXTS, ("x", "y")).of_evaluation(range(5)) == ["x", "y", "x", "y", "x"]
    assert PromptSet(TEXTS).of_evaluation([8, 0]) == ["b", "a"]
    assert PromptSet().of(0, 1, range(3), 3) == PromptSet().of_evaluation(range(3)) == ["", "", ""]


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("a cat", ("a cat",)),
        ("[a cat, two dogs]", ("a cat", "two dogs")),
        ("{texts: a cat}", ("a cat",)),
        ("{file: beside.txt}", ("one", "two")),
        ("{texts: [three], file: beside.jsonl}", ("three", "one", "two")),
        ("{texts: [a], held_out: [b, c], images_per_prompt: 2}", ("a",)),
        ("{texts: [a], held_out: {file: beside.txt}}", ("a",)),
    ],
)  # fmt: skip
def test_every_way_to_give_them(prompts: str, texts: tuple[str, ...], tmp_path: Path):
    """A text, a list, a file beside the recipe, or all of it; stored whole and read back as the same recipe."""
    (tmp_path / "beside.txt").write_text("one\n\n  two \n")
    (tmp_path / "beside.jsonl").write_text('{"prompt": "one", "id": 3}\n{"prompt": " two"}\n')
    recipe = recipe_of(tmp_path, prompts)
    assert PromptSet.read(recipe.prompts).texts == texts
    again = check_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), source="stored")
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe)
    held_out = {"{texts: [a], held_out: [b, c], images_per_prompt: 2}": ("b", "c")}
    held_out["{texts: [a], held_out: {file: beside.txt}}"] = ("one", "two")
    assert PromptSet.read(recipe.prompts).held_out == held_out.get(prompts, ())


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("[]", "prompts: give a text, a list of texts"),
        ("{}", "prompts: give a text, a list of texts"),
        ('""', "prompts"),
        ("[a, 3]", "prompts.1: input should be a valid string, got 3"),
        ("3", "prompts:"),
        ("{texts: [a], hold_out: [b]}", "unknown key prompts.hold_out; did you mean held_out?"),
        ("{texts: [a], held_out: []}", "prompts.held_out: give a text"),
        ("{texts: [a], images_per_prompt: 0}", "prompts.images_per_prompt"),
        ("{texts: [a], images_per_prompt: 3}", "run.images_per_round must be a multiple of prompts.images_per_prompt"),
        ("{file: nowhere.txt}", "prompts.file: no such file: nowhere.txt"),
        ("{file: empty.txt}", "empty.txt holds no prompt"),
        ("{file: picture.png}", "picture.png is not a text file"),
        ("{texts: [a], held_out: {file: picture.png}}", "prompts.held_out.file: "),
        ("null", "model.kind embedded makes images from texts; give prompts"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused_in_one_line(prompts: str, said: str, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        recipe_of(tmp_path, prompts)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_models_without_prompts_refuse_them(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"prompts need a text-to-image model; model.kind embedded takes none"):
        recipe_of(tmp_path, "a cat", "model.name=digits")
    with pytest.raises(ConfigError, match=r"sampler\.negative_prompt needs a text-to-image model"):
        recipe_of(tmp_path, "~", "model.name=digits", "sampler.negative_prompt=ugly")
    assert recipe_of(tmp_path, "~", "model.name=digits").prompts is None


def test_text_models_take_guidance_and_rewards_take_the_runs_prompts(tmp_path: Path):
    recipe = recipe_of(
        tmp_path, "[a, b]", "sampler.guidance=5", "method.per_prompt=true",
        "reward=[{kind: clip_similarity, path: openai/clip-vit-base-patch32}]",
    )  # fmt: skip
    assert recipe.sampler.guidance == 5 and recipe.prompts == PromptsConfig(texts=("a", "b"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"\n\n", "holds no prompt"),
        ("a.txt", b"\xff\xfe\x00a", "is not a text file"),
        ("a.txt", b"cat\x00dog", "is not a text file"),
        ("a.jsonl", b'{"prompt": "a"}\n\nnot json', r"a.jsonl line 3: .* got 'not json'"),
        ("a.jsonl", b'{"text": "a"}', r"a.jsonl line 1: \{.prompt.*is needed"),
        ("a.jsonl", b'["a"]', "a.jsonl line 1"),
        ("a.jsonl", b'{"prompt": 3}', "the prompt must be a text, got 3"),
        ("a.jsonl", b'{"prompt": " "}', "the prompt must be a text"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1"),
        ("folder", None, "can't be read: it is a folder"),
        ("missing.txt", None, "no such prompt file"),
    ],
)  # fmt: skip
def test_bad_files_are_named(name: str, content: bytes | None, said: str, tmp_path: Path):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    elif name == "folder":
        file.mkdir()
    with pytest.raises(ConfigError, match=said) as caught:
        read_prompt_file(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_from_other_editors(tmp_path: Path):
    """A byte-order mark, Windows line ends and letters of any script."""
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffein Kätzchen\r\n二匹の犬\r\n".encode())
    assert read_prompt_file(file) == ("ein Kätzchen", "二匹の犬")
