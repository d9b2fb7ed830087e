"""Which files are changed, and which command reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import places

RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
FEW = ("--num-images", "1", "--steps", "2", "--out", "out")


@dataclass(frozen=True)
class Command:
    """Words after `memdiff`. `as_rank`: in the environment of a rank, as the launcher starts it."""

    words: Sequence[str]
    as_rank: bool = False


@dataclass(frozen=True)
class Surface:
    """A folder, patterns of the files in it that are changed, and commands that read them."""

    name: str
    build: Callable[[Path], None]
    files: Sequence[str]
    commands: Sequence[Command]
    names_paths: bool = False  # whether the files may name others by right, as a recipe does
    named: bool = False  # whether the command line names them, so that what a link leads to was somebody's choice

    def targets(self, folder: Path) -> list[str]:
        """Every file that is changed."""
        matches = {file for pattern in self.files for file in folder.glob(pattern) if file.is_file()}
        return sorted(str(file.relative_to(folder)) for file in matches)


def _commands(*texts: str) -> list[Command]:
    return [Command(text.split()) for text in texts]


def _scores(*rewards: str) -> list[Command]:
    return [Command(["score", "images", "--reward", reward, "--prompt", "a cat", "--rows"]) for reward in rewards]


SAMPLED = f"sample run {' '.join(FEW)}"
RUN_FILES = ("run/*", "run/samples/*", "run/model/**/*", "run/model_best/**/*", "run/checkpoints/**/*")
TEXT_SAMPLE = Command(["sample", "model", *FEW, "--prompt", "a cat"])
DRY = Command(["train", "recipe.yaml", "--out", "out", "--dry-run"])
RESUMED = Command(["train", "recipe.yaml", "--out", "run", "--resume", "must"], as_rank=True)

SURFACES = [
    Surface("run: report", places.reported, ("run/*", "run/samples/*"), _commands("report run")),
    Surface(
        "run: sample",
        places.run,
        ("run/config.yaml", "run/model/**/*", "run/model_best/**/*"),
        _commands(SAMPLED, f"{SAMPLED} --best", f"sample digits --mix run=0.5 {' '.join(FEW)}"),
        names_paths=True,
    ),
    Surface(
        "run: eval",
        places.run,
        ("run/config.yaml", "run/model/**/*"),
        _commands("eval run --num-images 2 --steps 2"),
        names_paths=True,
    ),
    Surface("run: resume", places.run, RUN_FILES, [RESUMED], names_paths=True),
    Surface(
        "run: the command line before a launch",
        places.run,
        RUN_FILES,
        _commands(
            "train recipe.yaml --out run --resume must --dry-run",
            "train recipe.yaml --out new --resume-from run --dry-run",
        ),
        names_paths=True,
    ),
    Surface(
        "samples",
        places.sampled,
        ("samples/*",),
        _commands(
            "score samples --reward digits --rows",
            "eval samples --reward jpeg",
            "sample digits --num-images 1 --steps 2 --out samples",
        ),
    ),
    Surface(
        "model: ddpm",
        places.ddpm,
        ("model/**/*",),
        [
            Command(["sample", "model", *FEW]),
            DRY,
            *_commands("plan recipe.yaml", "init --model model --reward jpeg --out new.yaml"),
        ],
    ),
    Surface(
        "model: stable diffusion",
        places.stable_diffusion,
        ("model/**/*",),
        [TEXT_SAMPLE, TEXT_SAMPLE, DRY, *_commands("plan recipe.yaml")],
    ),
    Surface(
        "model: one file",
        places.single_files,
        ("whole.safetensors", "old.ckpt", "vae.safetensors"),
        [
            *(
                Command([command, name, "--config", "model", *FEW, "--prompt", "a cat"])
                for command in ("sample", "eval")
                for name in ("whole.safetensors", "old.ckpt")
            ),
            *_commands("train vae.yaml --out out --dry-run", "plan vae.yaml"),
            Command(["train", "vae.yaml", "--out", "out"], as_rank=True),
            Command(["train", "vae.yaml", "--out", "out"], as_rank=True),
        ],
    ),
    Surface("model: sdxl", places.sdxl, ("model/**/*",), [TEXT_SAMPLE, TEXT_SAMPLE, DRY]),
    Surface(
        "adapters",
        places.adapters,
        ("peft/*", "diffusers/*", "kohya/*", "old/*"),
        [
            Command(["sample", "model", *FEW, "--prompt", "a", "--mix", f"{name}=1"])
            for name in ("peft", "diffusers", "kohya", "old")
        ],
    ),
    Surface(
        "adapters: go on from",
        places.adapters,
        ("peft/*", "diffusers/*", "kohya/*", "old/*"),
        _commands("plan peft.yaml", "plan diffusers.yaml", "plan kohya.yaml", "plan old.yaml"),
    ),
    Surface("reward: classifier", places.rewards, ("classifier/*",), _scores("classifier:path=classifier,label=male")),
    Surface(
        "reward: clip, pickscore, aesthetic",
        places.rewards,
        ("clip/*", "aesthetic.pth"),
        _scores(
            "clip_similarity:path=clip", "pickscore:path=clip,tokenizer=clip", "aesthetic:path=clip,head=aesthetic.pth"
        ),
    ),
    Surface("reward: hpsv2", places.rewards, ("hps/*",), _scores("hpsv2:path=hps,tokenizer=hps")),
    Surface(
        "reward: image_reward",
        places.image_reward,
        ("published/*", "converted/*"),
        _scores("image_reward:path=published", "image_reward:path=converted/ImageReward.safetensors"),
    ),
    Surface("reward: detection", places.rewards, ("detection/*",), _scores("detection:path=detection,object=cat")),
    Surface(
        "eval: features",
        places.features,
        ("clip/*", "inception/*", "images/*"),
        _commands(
            "eval images --diversity clip --clip clip",
            "eval images --diversity inception --inception inception",
            "eval images --real images --inception inception",
        ),
    ),
    Surface(
        "prompts",
        places.prompts,
        ("*",),
        [
            *(
                Command(["sample", "digits_text", *FEW, "--prompts", name])
                for name in ("p.txt", "p.csv", "p.tsv", "p.json", "q.json", "p.jsonl")
            ),
            *(
                Command(["eval", "digits_text", "--num-images", "2", "--steps", "1", "--prompts", name])
                for name in ("drawbench.csv", "p.tsv", "geneval.jsonl", "p.json")
            ),
        ],
        named=True,
    ),
    Surface(
        "DeepSpeed's JSON",
        places.deepspeed,
        ("ds.json",),
        _commands("train recipe.yaml --out out --ds-config ds.json --dry-run"),
        named=True,
    ),
    Surface(
        "recipe",
        places.recipe,
        ("recipe.yaml",),
        _commands(
            "train recipe.yaml --out out --dry-run",
            "plan recipe.yaml",
            "train recipe.yaml --out out --dry-run",
            "recipes --show recipe.yaml",
        ),
        names_paths=True,
        named=True,
    ),
]
