"""A recipe is right, or is refused in one line that names the key: what, what was got, what to do."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from memdiff.engine.ds_config import read_user_file
from memdiff.errors import ConfigError
from memdiff.memory.knobs import TABLE, Knobs, MemoryConfig, resolved, tell_of_old_key
from memdiff.recipe.mistakes import RecipeError
from memdiff.recipe.prompts import read_prompt_file
from memdiff.recipe.reading import changed_keys, check_recipe, read_recipe, recipe_hash
from memdiff.recipe.recipe import Recipe
from memdiff.recipe.schema import recipe_schema
from memdiff.recipe.synonyms import KEYS
from tests.helpers.processes import run_python

ROOT = Path(__file__).resolve().parents[2]
LEAST = "model: {kind: embedded}\nmethod: {kind: reinforce}\nreward: [{kind: digits}]\n"
SHARE = "reward: [{kind: digits, mode: share, target_share: 0.5}]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def refusal(file: Path, content: str | bytes, overrides: tuple[str, ...] = ()) -> str:
    """What a person reads."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_recipe(file, overrides)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message and 0 < len(message) < 400
    return message


# (what is laid over the smallest recipe, the dotted key that is named, what else the line must say)
BAD_VALUES = [
    ("rnu.rounds=3", "unknown key rnu", "did you mean run?"),
    ("run.ruonds=3", "unknown key run.ruonds", "did you mean rounds?"),
    ("reward.0.hihg=0.9", "unknown key reward.0.hihg", "did you mean high?"),
    ("reward.0.label=male", "unknown key reward.0.label", "known here: chunk, classifier, digits"),
    ("evaluate.rewards=[{kind: digits, clasifier: judge}]", "unknown key evaluate.rewards.0.clasifier", "classifier?"),
    ("model.path=x", "unknown key model.path", "known here: channels_last, kind, name, precision"),
    ("memory.vram=16", "unknown key memory.vram", "known here: accumulators"),
    ("run.rounds=abc", "run.rounds:", "integer, got 'abc'"),
    ("run.rounds=3.5", "run.rounds:", "fractional part, got 3.5"),
    ("run.rounds=", "run.rounds:", "got None"),
    ("run.rounds=[1]", "run.rounds:", "got [1]"),
    ("run.rounds=yes", "run.rounds:", "a number is needed, not yes/no"),
    ("sampler.eta=off", "sampler.eta:", "a number is needed, not yes/no"),
    ("memory.micro_batch=on", "memory.micro_batch:", "a number is needed, not yes/no"),
    ("sampler.eta=.nan", "sampler.eta:", "finite"),
    ("optimizer.learning_rate=-.inf", "optimizer.learning_rate:", "finite"),
    ("reward.0.weight=nan", "reward.0.weight:", "finite"),
    ("run.rounds=0", "run.rounds:", "greater than or equal to 1, got 0"),
    ("run.seed=-1", "run.seed:", "greater than or equal to 0"),
    ("run.seed=9223372036854775808", "run.seed:", "less than 9223372036854775808"),
    ("run.images_per_round=1000000000000", "run.images_per_round:", "less than or equal to 1000000, got"),
    ("optimizer.learning_rate=1.0e+300", "optimizer.learning_rate:", "less than or equal to 10, got 1e+300"),
    ("sampler.steps=1001", "sampler.steps:", "less than or equal to 1000"),
    ("sampler.timestep_spacing=trailng", "sampler.timestep_spacing:", "'leading', 'linspace' or 'trailing'"),
    ("sampler=5", "sampler:", "got 5"),
    ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1:", "less than 1, got 1.5"),
    ("optimizer.betas=[0.9, x]", "optimizer.betas.1:", "number"),
    ("optimizer.betas=[0.9]", "optimizer.betas needs 2 entries", "got [0.9]"),
    ("optimizer.betas=[0.9, 0.99, 0.999]", "optimizer.betas:", "at most 2"),
    ("optimizer.bits=16", "optimizer.bits:", "8 or 32, got 16"),
    ("model.kind=gan", "model.kind must be one of 'ddpm'", "got 'gan'"),
    ("model.kind=[ddpm]", "model.kind must be one of", "got ['ddpm']"),
    ("model.kind=ddpm", "model.path is missing", ""),
    ("model={name: digits}", "model needs a kind", ""),
    ("method.kind=reinforced", "method.kind must be one of 'reinforce'", "got 'reinforced'"),
    ("reward.0.kind=digit", "reward.0.kind must be one of", "'classifier', 'digits', 'python'"),
    ("evaluate.rewards=[{kind: juge}]", "evaluate.rewards.0.kind must be one of", "got 'juge'"),
    ("memory.micro_batch=autto", "memory.micro_batch:", "integer, unable to parse string as an integer, or"),
    ("memory.activation_checkpointing=perhaps", "memory.activation_checkpointing:", "'auto'"),
    ("method.step_weights=ballanced", "method.step_weights:", "'uniform' or 'balanced'"),
    ("method.step_weights=[1, 2]", "method.step_weights", "one number a step, 50 of them, got 2"),
    ("method.step_weights=[]", "method.step_weights:", ">= 0, one a step, not all zero"),
    ("reward=[]", "reward:", "at least 1"),
    ("reward.0.high=0.1", "reward.0:", "low must be below high, got low=0.2 and high=0.1"),
    ("reward.0.mode=share", "reward.0:", "target_share goes with mode: share"),
    ("reward.0.digits=[5, 5]", "reward.0.digits:", "different numbers 0..9"),
    ("reward.0.digits=[5, ten]", "reward.0.digits.1:", "got 'ten'"),
    ("reward=[{kind: digits}, {kind: digits}]", "two reward parts are named digits", "`name`"),
    ("evaluate.rewards=[{kind: digits}]", "two reward parts are named digits", "`name`"),
    ("reward.0={kind: python, file: nowhere.py}", "reward.0.file:", "no such file: nowhere.py"),
    ("reward.0={kind: python}", "reward.0.file is missing", ""),
    ("reward.0={kind: classifier, path: ./nowhere, label: male}", "reward.0.path:", "no such folder: ./nowhere"),
    ("model={kind: ddpm, path: /no/where}", "model.path:", "no such folder: /no/where"),
    ("model={kind: ddpm, path: digits}", "model.path:", "model: {kind: embedded, name: digits}"),
    ("sampler.eta=0", "sampler.eta 0 has no density", "set sampler.eta to 1"),
    ("sampler.guidance=7.5", "sampler.guidance needs a text-to-image model", "embedded has no prompt"),
    ("method.per_prompt=true", "method.per_prompt needs prompts", "embedded has none"),
    ("adapter.targets=[]", "adapter.targets:", "at least 1"),
    (f"run.rounds=0x{'f' * 4000}", "run.rounds:", "got an integer of thousands of digits"),
]


@pytest.mark.parametrize(("override", "named", "allowed"), BAD_VALUES, ids=[case[0] for case in BAD_VALUES])
def test_bad_values_are_named(file: Path, override: str, named: str, allowed: str):
    """The line starts with file and dotted key, in whatever union or list it stands, and tells what is allowed."""
    message = refusal(file, LEAST, (override,))
    assert message.startswith(f"recipe.yaml: {named}") and allowed in message


def paths_of(value: object, prefix: str = "") -> list[str]:
    """The dotted paths of every key of plain data, sections before what they hold."""
    if isinstance(value, dict):
        entries = {f"{prefix}{key}": entry for key, entry in value.items()}
        return [path for key, entry in entries.items() for path in (key, *paths_of(entry, f"{key}."))]
    if isinstance(value, list):
        return [path for number, entry in enumerate(value) for path in paths_of(entry, f"{prefix}{number}.")]
    return []


def whole_recipe() -> dict[str, object]:
    """A recipe with every section and every default written out."""
    share = {"kind": "digits", "mode": "share", "target_share": 0.5, "name": "b"}
    least = yaml.safe_load(LEAST)
    least |= {"adapter": {}, "reward": [{"kind": "digits"}, share]}
    least |= {"evaluate": {"rewards": [{"kind": "digits", "classifier": "judge"}]}}
    return check_recipe(least, source="").model_dump(mode="json")


@pytest.mark.parametrize("dotted", paths_of(whole_recipe()))
def test_every_key_of_a_recipe_is_guarded(file: Path, dotted: str):
    """Every key at every depth: misspelt it is unknown under its dotted name, and a section's worth of nonsense or a
    number that is none does not pass for its value."""
    text = yaml.safe_dump(whole_recipe())
    assert refusal(file, text, (f"{dotted}x=1",)).startswith(f"recipe.yaml: unknown key {dotted}x")
    for nonsense in ("{no: way}", ".nan", "[[]]"):
        message = refusal(file, text, (f"{dotted}={nonsense}",))
        named = message.removeprefix("recipe.yaml: ").removeprefix("unknown key ")
        assert named.startswith(dotted)


BAD_TEXTS = [
    ("", "a recipe is a mapping of sections, got NoneType"),
    ("# nothing but this\n", "got NoneType"),
    ("- model\n- method\n", "got list"),
    ("embedded", "got str"),
    (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a text file; a recipe is YAML in UTF-8"),
    (LEAST.encode("utf-16"), "not a text file"),
    (b"model: {kind: embedded}\x00\n", "not valid YAML"),
    ("model:\n\tkind: embedded\n", "(line 2): found character '\\t'"),
    (LEAST + "run: {rounds: 3\n", "not valid YAML (line 5)"),
    (LEAST + "model: {kind: embedded}\n", "(line 4): the key model is given twice"),
    (LEAST + "run: {rounds: 3, seed: 1, rounds: 4}\n", "(line 4): the key rounds is given twice"),
    (LEAST + "run: &it {rounds: 3}\nsampler: *it\n", "(line 5): aliases (*name) are not supported"),
    ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "(line 2): aliases (*name) are not supported"),
    (LEAST + "run: !!python/object:os.system {}\n", "could not determine a constructor"),
    (LEAST + "run: !!timestamp soon\n", "not valid YAML"),
    (LEAST + "run: !!bool perhaps\n", "not valid YAML"),
    (LEAST + "run: {rounds: 2020-13-41}\n", "not valid YAML"),
    (LEAST + "run: {seed: " + "9" * 5000 + "}\n", "not valid YAML"),
    (LEAST + "---\n" + LEAST, "another document"),
    ("[" * 5000, "not valid YAML"),
    (LEAST + "1: 2\n", "keys should be strings"),
    (LEAST.replace("model", "modle"), "unknown key modle; did you mean model? (and 1 more)"),
    ("run: {rounds: 3}\n", "model is missing (and 2 more)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_bad_files_are_refused(file: Path, content: str | bytes, said: str):
    """No file brings down the reader: neither no YAML at all, nor YAML that means to be clever."""
    message = refusal(file, content)
    assert said in message and "recipe.yaml" in message


def test_yaml_runs_no_code(file: Path, tmp_path: Path):
    """`!!python/object/apply` is refused and what it asks for does not happen."""
    marker = tmp_path / "ran"
    refusal(file, LEAST + f"run: !!python/object/apply:os.mkdir ['{marker}']\n")
    refusal(file, LEAST, (f"run=!!python/object/apply:os.mkdir ['{marker}']",))
    assert not marker.exists()


def test_files_that_cannot_be_read(file: Path, tmp_path: Path):
    """Missing, a folder, or larger than any recipe: each is told without reading on."""
    with pytest.raises(ConfigError, match=r"no such recipe: .*missing\.yaml.*memdiff recipes"):
        read_recipe(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="can't be read: it is a folder"):
        read_recipe(tmp_path)
    assert "at most 250000 bytes" in refusal(file, LEAST + "#" * 250_000)


@pytest.mark.parametrize("make", ["fifo", "socket", "/dev/zero"])
@pytest.mark.parametrize("read", [read_recipe, read_prompt_file, lambda path: read_user_file(path, {})])
def test_only_regular_files_are_read(tmp_path: Path, read: Callable[[Path], object], make: str):
    """A pipe is not waited for and a device has no end: each is refused before it is opened."""
    path = Path(make) if make.startswith("/") else tmp_path / make
    if make == "fifo":
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(ConfigError, match="give a regular file"):
        if make == "socket":
            listener.bind(os.path.relpath(path))
        read(path)


def unbounded(node: Any, path: str = "") -> list[str]:
    """Where a JSON schema lets a number be as small or as large as it likes."""
    if isinstance(node, list):
        return [name for number, entry in enumerate(node) for name in unbounded(entry, f"{path}.{number}")]
    if not isinstance(node, dict):
        return []
    numeric = node.get("type") in ("integer", "number") and not {"const", "enum"} & node.keys()
    bounds = [{"minimum", "exclusiveMinimum"} & node.keys(), {"maximum", "exclusiveMaximum"} & node.keys()]
    return [path] * (numeric and not all(bounds)) + [
        name for key, entry in node.items() for name in unbounded(entry, f"{path}.{key}")
    ]


def test_every_number_has_bounds():
    """1e300 is a learning rate to no one, and 10**12 images are no round: no number of a recipe goes without both."""
    assert unbounded(recipe_schema()) == []
    assert unbounded({"type": "integer", "minimum": 0}) == [""]


DRAFT = (
    "model: {kind: embedded}\nmethod: {kind: draft, last_steps: 2}\n"
    "reward: [{kind: digits, mode: probability}]\nsampler: {steps: 4}\n"
)


def test_no_more_steps_are_kept_than_are_differentiated(file: Path):
    """`kept_steps` beyond the chain would change nothing, which is not what was meant."""
    file.write_text(DRAFT)
    assert read_recipe(file, ("memory.kept_steps=2",)).memory.kept_steps == 2
    assert "memory.kept_steps must be 0..2" in refusal(file, DRAFT, ("memory.kept_steps=3",))
    assert "0..4" in refusal(file, DRAFT, ("memory.kept_steps=99", "method.last_steps=all"))
    one = "method={kind: refl, first_step: 1, last_step: 3}"
    assert "0..1" in refusal(file, DRAFT, ("memory.kept_steps=2", one))
    assert "goes with 0 or auto" in refusal(file, LEAST, ("memory.kept_steps=1",))


def test_others_names_lead_to_ours(file: Path):
    """Every key that the table leads to is there, and each is told where it was written."""
    keys = {re.sub(r"\.\d+(?=\.|$)", "", key) for key in paths_of(whole_recipe())} | {"prompts", "prompts.file"}
    of_kinds = {f"model.{key}" for key in ("path", "revision", "resolution", "height", "width")}
    of_kinds |= {"method.last_steps", "method.truncation"}
    for name, place in KEYS.items():
        assert " " in place or place in keys | of_kinds, place
        assert f"unknown key {name}; " in refusal(file, LEAST, (f"{name}=1",)) or name in keys
    assert "learning_rate" in refusal(file, LEAST, ("optimizer.lr=1e-5",))


# (what is laid over the smallest recipe, what the line must say)
HINTS = [
    ("reward={kind: digits}", "reward: a list is needed, in brackets: [{'kind': 'digits'}]"),
    ("reward.0.digits=7", "reward.0.digits: a list is needed, in brackets: [7], got 7"),
    ("reward.0.digits='5, 6'", "in brackets: [5, 6], got '5, 6'"),
    ("adapter.targets=to_q", "in brackets: [to_q], got 'to_q'"),
    ("method.kind=ddpo", "reinforce with inner_updates above 1 is DDPO"),
    ("method.kind=DRaFT-LV", "draft with noise_samples is DRaFT-LV"),
    ("model.kind=sd15", "here it is stable_diffusion"),
    ("model.kind=digits_text", "embedded with name: digits_text"),
    ("reward.0.kind=ImageReward", "here it is image_reward"),
    ("evaluate.rewards=[{kind: clip-score}]", "here it is clip_similarity"),
    ("seed=1", "unknown key seed; here it is run.seed"),
    ("train.learning_rate=1", "unknown key train"),
    ("sampler.guidance_scale=7", "here it is sampler.guidance"),
    ("optimizer.use_8bit_adam=true", "set optimizer.bits to 8"),
]


@pytest.mark.parametrize(("override", "said"), HINTS, ids=[case[0] for case in HINTS])
def test_hints(file: Path, override: str, said: str):
    """The line tells how it is written here, where it was written as elsewhere."""
    assert said in refusal(file, LEAST, (override,))


def test_all_mistakes_are_listed(file: Path):
    """The first as the line, with how many more there are; each on a line of its own for who asks."""
    file.write_text(LEAST)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, ("run.rounds=0", "optimizer.lr=1", "sampler.eta=2"))
    assert str(caught.value).endswith("unknown key optimizer.lr; here it is optimizer.learning_rate (and 2 more)")
    assert [line.split(":")[1].split()[-1] for line in caught.value.lines[1:]] == ["sampler.eta", "run.rounds"]


BOMBS = [
    LEAST + "prompts: " + "[" * 900 + "]" * 900,
    LEAST + "prompts: [" * 5000,
    LEAST + "run: {rounds: [" + "1," * 120_000 + "1]}",
    LEAST.replace("[{kind: digits}]", "[" + "{kind: x}," * 20_000 + "]"),
    LEAST + "run: {" + ",".join(f"a{number}: 1" for number in range(20_000)) + "}",
    LEAST + "run: {seed: " + "1:" * 400 + "1.5}",
    LEAST + "".join(f"{'  ' * level}run:\n" for level in range(400)),
]


@pytest.mark.parametrize("content", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_bounded(file: Path, content: str):
    """What a recipe may hold is bounded before it is understood: size, keys and values, depth."""
    assert "not valid YAML" in refusal(file, content)


BAD_OVERRIDES = [
    ("run.rounds", "--set takes a.b=value, got 'run.rounds'"),
    ("=3", "--set takes a.b=value"),
    ("run..rounds=3", "--set takes a.b=value"),
    ("run.rounds={", "--set run.rounds: '{' is not a YAML value"),
    ("run.rounds=*it", "--set run.rounds: '*it' is not a YAML value"),
    ("run={rounds: 1, rounds: 2}", "is not a YAML value"),
    ("run.rounds=2020-13-41", "--set run.rounds: '2020-13-41' is not a YAML value"),
    ("run.rounds=" + "[" * 5000, "--set run.rounds: '[[["),
    ("reward.1.kind=digits", "--set reward.1.kind: '1' must be the number of an entry, 0..0"),
    ("reward.first.kind=digits", "--set reward.first.kind: 'first' must be the number of an entry"),
    ("reward.-1.weight=2", "--set reward.-1.weight: '-1' must be the number of an entry"),
    ("reward.².weight=2", "--set reward.².weight: '²' must be the number of an entry"),
]


@pytest.mark.parametrize(("override", "said"), BAD_OVERRIDES, ids=[case[0][:20] for case in BAD_OVERRIDES])
def test_bad_overrides_are_refused(file: Path, override: str, said: str):
    """What can't be laid over the recipe is named by the option and the key as they were typed."""
    assert said in refusal(file, LEAST, (override,))


# (what is laid over the smallest recipe, the dotted path of what it gives, the value)
GOOD_VALUES = [
    ("run.rounds=7", "run.rounds", 7),
    ("run.rounds='7'", "run.rounds", 7),
    ("run.seed=9223372036854775807", "run.seed", 2**63 - 1),
    ("run={rounds: 3, seed: 4}", "run.seed", 4),
    ("optimizer.learning_rate=1e-5", "optimizer.learning_rate", 1e-5),  # YAML 1.1 reads this as text
    ("optimizer.learning_rate=3", "optimizer.learning_rate", 3.0),
    ("optimizer.betas=[0, 0.99]", "optimizer.betas", (0.0, 0.99)),
    ("optimizer.ema=0.999", "optimizer.ema", 0.999),
    ("optimizer={}", "optimizer.learning_rate", 1e-5),
    ("adapter={}", "adapter.targets", ("to_q", "to_k", "to_v", "to_out.0")),
    ("adapter.rank=8", "adapter.rank", 8),
    ("adapter=~", "adapter", None),
    ("sampler.timestep_spacing=trailing", "sampler.timestep_spacing", "trailing"),
    ("sampler={eta: 0, sigma_floor: 0.001}", "sampler.eta", 0.0),  # a floor gives every step a density
    ("sampler.guidance=~", "sampler.guidance", None),
    ("memory.micro_batch=4", "memory.micro_batch", 4),
    ("memory.micro_batch=auto", "memory.micro_batch", "auto"),
    ("memory.offload_optimizer=yes", "memory.offload_optimizer", True),
    ("method.step_weights=balanced", "method.step_weights", "balanced"),
    ("method={kind: reinforce, advantage_clip: 5}", "method.advantage_clip", 5.0),
    ("reward.0.weight=-2", "reward.0.weight", -2.0),
    ("reward.0.name=fives.and-up_9", "reward.0.name", "fives.and-up_9"),
    ("reward=[{kind: digits}, {kind: digits, name: again}]", "reward.1.name", "again"),
    ("evaluate={every: 0, rewards: [{kind: digits, classifier: judge}]}", "evaluate.rewards.0.classifier", "judge"),
    ("model={kind: ddpm, path: google/ddpm-celebahq-256}", "model.path", "google/ddpm-celebahq-256"),
    ("model.precision=fp32", "model.precision", "fp32"),
]


def value_at(recipe: Recipe, dotted: str) -> object:
    value: object = recipe
    for key in dotted.split("."):
        value = value[int(key)] if isinstance(value, tuple) else vars(value)[key]
    return value


@pytest.mark.parametrize(("override", "dotted", "expected"), GOOD_VALUES, ids=[case[0] for case in GOOD_VALUES])
def test_good_values_are_taken(file: Path, override: str, dotted: str, expected: object):
    """No valid recipe is refused, and each override lands where it says, with the type that the section has."""
    file.write_text(LEAST)
    value = value_at(read_recipe(file, (override,)), dotted)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("content", ["\ufeff" + LEAST, LEAST.replace("\n", "\r\n"), "---\n" + LEAST + "...\n"])
def test_editors_leave_their_marks(file: Path, content: str):
    """A byte-order mark, Windows line ends and document marks change nothing."""
    file.write_bytes(content.encode())
    recipe = read_recipe(file)
    file.write_text(LEAST)
    assert recipe == read_recipe(file)


def test_overrides_go_on_in_order(file: Path):
    """A later override wins; one that names a section that isn't there makes it; entries of a list are numbered."""
    file.write_text(LEAST)
    recipe = read_recipe(file, ("run.rounds=1", "run.rounds=2", "adapter.rank=3", "reward.0.weight=0.5"))
    assert (recipe.run.rounds, recipe.reward[0].weight) == (2, 0.5)
    assert recipe.adapter is not None and recipe.adapter.rank == 3


def test_step_weights_fit_the_steps(file: Path):
    """One number a step of the sampler's own chain, whichever of the two keys is changed."""
    file.write_text(LEAST)
    recipe = read_recipe(file, ("sampler.steps=3", "method.step_weights=[1, 0, 2]"))
    assert recipe.method.kind == "reinforce" and recipe.method.step_weights == (1.0, 0.0, 2.0)
    assert "3 of them, got 2" in refusal(file, LEAST, ("sampler.steps=3", "method.step_weights=[1, 2]"))
    message = refusal(file, LEAST, ("sampler.steps=2", "method.step_weights=[1, -2]"))
    assert message.startswith("recipe.yaml: method.step_weights.1: input should be greater than or equal to 0")


def test_files_beside_the_recipe_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative paths are tried from the working directory, then beside the recipe; they are stored absolute."""
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        (folder / "net").mkdir(parents=True)
    (beside / "mine.py").write_text("")
    recipe_file = beside / "recipe.yaml"
    parts = "[{kind: python, file: mine.py}, {kind: classifier, path: ./net, label: cat}]"
    recipe_file.write_text(LEAST.replace("[{kind: digits}]", parts))
    monkeypatch.chdir(tmp_path)
    python, classifier = read_recipe(recipe_file).model_dump()["reward"]
    assert (python["file"], classifier["path"]) == (str(beside / "mine.py"), str(beside / "net"))
    monkeypatch.chdir(elsewhere)
    assert read_recipe(recipe_file).model_dump()["reward"][1]["path"] == str(elsewhere / "net")


@pytest.mark.parametrize(
    "recipe_file", sorted((ROOT / "launch" / "recipes").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_shipped_recipe_loads(recipe_file: Path, monkeypatch: pytest.MonkeyPatch):
    """From the repository's root, where their headers say that they are started."""
    monkeypatch.chdir(ROOT)
    assert read_recipe(recipe_file).run.rounds >= 1


def test_a_stored_recipe_is_the_same_recipe(file: Path):
    """The whole recipe, defaults and all, goes through YAML and comes back equal, with the same hash."""
    file.write_text(LEAST.replace("reward: [{kind: digits}]\n", SHARE))
    recipe = read_recipe(file, ("adapter.rank=2", "optimizer.learning_rate=1e-5", "method.advantage=leave_one_out"))
    again = check_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), source="stored")
    assert again == recipe and recipe_hash(again) == recipe_hash(recipe) and changed_keys(again, recipe) == []


@pytest.mark.parametrize(
    "override",
    ["run.rounds=3", "run.save_every=1", "run.keep_checkpoints=5", "memory.micro_batch=2", "memory.trajectory=host"],
)
def test_some_keys_may_change_on_resume(file: Path, override: str):
    """A run may be made longer and fitted into other memory: neither hash nor changed keys see it."""
    file.write_text(LEAST)
    old, new = read_recipe(file), read_recipe(file, (override,))
    assert old != new and recipe_hash(old) == recipe_hash(new) and changed_keys(old, new) == []


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (("run.seed=1",), ["run.seed"]),
        (("run.images_per_round=8",), ["run.images_per_round"]),
        (("optimizer.learning_rate=1e-4", "sampler.steps=10"), ["optimizer.learning_rate", "sampler.steps"]),
        (("reward.0.digits=[5, 6, 7, 8]",), ["reward.0.digits.4"]),
        (("reward.0.weight=2", "run.rounds=9"), ["reward.0.weight"]),
        (("optimizer.betas=[0.9, 0.99]",), ["optimizer.betas.1"]),
        (("model.precision=fp32",), ["model.precision"]),
    ],
)
def test_other_keys_may_not(file: Path, overrides: tuple[str, ...], keys: list[str]):
    """What decides the weights changes the hash, and the keys that differ are named, and no others."""
    file.write_text(LEAST)
    old, new = read_recipe(file), read_recipe(file, overrides)
    assert recipe_hash(old) != recipe_hash(new) and changed_keys(old, new) == keys == changed_keys(new, old)


def test_the_command_line_says_it_in_one_line(file: Path, tmp_path: Path):
    """`memdiff train` on a bad recipe: exit code 2, one line on stderr, nothing written. (That it takes under 2 s, a
    matter of the machine, follows from torch not being loaded: the next test.)"""
    file.write_text(LEAST + "run: {ruonds: 3}\n")
    before = sorted(tmp_path.rglob("*"))
    done = run_python("-m", "memdiff", "train", "recipe.yaml", "--out", "made/run", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "memdiff: error[2]: recipe.yaml: unknown key run.ruonds; did you mean rounds?\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_is_told_before_torch_is_loaded(file: Path, tmp_path: Path):
    """Bad recipe, override, option, number of ranks, place, layer, DeepSpeed file, missing file: all are told by a
    process that never imports torch."""
    file.write_text(LEAST)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"reduce_buket_size": 5}}')
    commands = [
        ["train", "recipe.yaml", "--set", "sampler.eta=0"],
        ["train", "recipe.yaml", "--set", "run.rounds"],
        ["train", "recipe.yaml", "--resume", "perhaps"],
        ["train", "recipe.yaml", "--out", "run", "--gpus", "3", "--set", "run.images_per_round=2"],
        ["train", "recipe.yaml", "--out", "recipe.yaml/run"],
        ["train", "recipe.yaml", "--out", "run", "--set", "adapter.targets=[to_qq]"],
        ["train", "recipe.yaml", "--out", "run", "--ds-config", "ds.json"],
        ["train", "missing.yaml"],
        ["train"],
    ]
    script = f"""
import json, sys
from memdiff.cli import main
codes = []
for command in {commands}:
    try:
        main(command)
    except SystemExit as exit:
        codes.append(exit.code)
print(json.dumps([codes, "torch" in sys.modules]))
"""
    done = run_python("-c", script, cwd=tmp_path)
    assert json.loads(done.stdout) == [[2] * len(commands), False]
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands) and all(line.startswith("memdiff: error[2]: ") for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds.json", "recipe.yaml"]


def test_the_schema_has_the_sections_of_a_recipe(tmp_path: Path):
    """`memdiff schema` is JSON whose sections are the recipe's, so that editors can check recipes."""
    done = run_python("-m", "memdiff", "schema", cwd=tmp_path)
    assert done.returncode == 0 and set(json.loads(done.stdout)["properties"]) == set(Recipe.model_fields)


@pytest.mark.parametrize(("word", "place"), [("stay", "gpu"), ("leave", "host"), ("auto", "auto")])
def test_the_old_key_for_idle_parts_is_read(word: str, place: Any, caplog: pytest.LogCaptureFixture):
    """It sets the two that took its place, with one line a process; auto changes nothing, and one of them given beside
    it holds."""
    tell_of_old_key.cache_clear()
    for _ in range(2):
        assert MemoryConfig.model_validate({"idle_parts": word}) == MemoryConfig(idle_unet=place, idle_decoder=place)
    messages = [record.getMessage() for record in caplog.records]
    assert [line.count("\n") for line in messages] == ([] if word == "auto" else [0]) and all(
        place in line for line in messages
    )
    beside = MemoryConfig.model_validate({"idle_parts": word, "idle_decoder": "gpu"})
    assert (beside.idle_unet, beside.idle_decoder) == (place, "gpu")
    with pytest.raises(ValidationError, match="idle_unet and idle_decoder"):
        MemoryConfig.model_validate({"idle_parts": "away"})


def test_a_run_has_every_knob_decided():
    """What a run reads has no `auto`, and none of it by default; a recipe's words go over unchanged."""
    with pytest.raises(ValidationError) as raised:
        Knobs()
    assert {mistake["loc"][0] for mistake in raised.value.errors()} == TABLE.keys()
    said = MemoryConfig(trajectory="host", kept_steps=3, rewards="idle_off")
    knobs = resolved(said, kept_steps=7, micro_batch=5)
    assert (knobs.trajectory, knobs.kept_steps, knobs.rewards, knobs.micro_batch) == ("host", 3, "idle_off", 5)


def test_the_schema_says_what_auto_is():
    """Written from the table, once: a knob that the plan chooses says so."""
    descriptions = {
        name: field["description"] for name, field in MemoryConfig.model_json_schema()["properties"].items()
    }
    assert descriptions.keys() == TABLE.keys() and all(text.count("auto: ") == 1 for text in descriptions.values())
    assert descriptions["kept_steps"].endswith("auto: on GPUs what the plan finds fastest, else 0.")
    assert descriptions["guidance_passes"].endswith("auto: 1.")
