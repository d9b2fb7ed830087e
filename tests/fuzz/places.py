"""The folders that are changed: a run, models, adapters, rewards, prompts, images."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers import OwlViTConfig, OwlViTForObjectDetection

from memdiff.evaluation.inception import FILE, NUM_FEATURES, inception_layers
from memdiff.recipe.contents import contents_of
from memdiff.recipe.reading import read_recipe
from tests.helpers.image_reward_small import RECORD
from tests.helpers.lora_files import factors_for, kohya, peft_names
from tests.helpers.original_names import in_one_file
from tests.helpers.reward_models import (
    VOCABULARY,
    aesthetic_weights,
    shake,
    tiny_clip_config,
    tiny_open_clip,
    write_classifier,
    write_clip,
    write_hps,
    write_tokenizer,
)
from tests.helpers.tiny import tiny_sdxl_pipeline, tiny_stable_diffusion_pipeline

KEPT = Path(__file__).resolve().parents[2] / "benchmarks/recorder/record/kept"
TEXTS = ["a cat", "two dogs, sitting", "a red hat"]
DS_CONFIG = {
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 5000, "overlap_comm": False},
    "fp16": {"loss_scale_window": 100},
    "steps_per_print": 10,
    "comms_logger": {"enabled": False},
}


def run(folder: Path) -> None:
    """A run that is complete, with every file that a run folder can hold, and its recipe."""
    shutil.copytree(KEPT / "digits_run", folder / "run")
    shutil.copyfile(folder / "run/config.yaml", folder / "recipe.yaml")
    judged = {"num_images": 100, "minority_share": 0.1, "share_low": 0.05, "share_high": 0.17}
    (folder / "run/judge.json").write_text(json.dumps({"before": judged, "after": judged}))
    plan = {"fits": True, "budget_bytes": 2**32, "peak_bytes": 2**31, "items": {"weights": 2**20}, "knobs": {}}
    (folder / "run/plan.json").write_text(json.dumps(plan))
    contents = contents_of(read_recipe(folder / "recipe.yaml"))  # another's would refuse every resume
    (folder / "run/contents.json").write_text(json.dumps(contents))
    (folder / "run/loggers.json").write_text(json.dumps({"key": "0123456789"}))
    event = {"time": "2026-01-01T00:00:00Z", "event": "started", "round": 0, "text": "on 1 x cpu"}
    (folder / "run/events.jsonl").write_text(json.dumps(event) + "\n")
    for grid in (folder / "run/samples").glob("round_*.png"):
        grid.with_suffix(".json").write_text(json.dumps({"prompts": ["", ""], "scores": {"digits": [0.5, 1.0]}}))
    (folder / "run/launcher.log").write_text("memdiff: error[3]: of another day\n")
    images(folder / "run/samples_from_model")


def reported(folder: Path) -> None:
    """The same with few metrics: each is a plot, which takes time."""
    run(folder)
    metrics = folder / "run/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    keys = ("round", "reward_mean", "alarms", "seconds_train", "step_gradient_norm", "evaluate/best", "reward/digits")
    lean = [{key: row[key] for key in keys if key in row} for row in rows]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in lean))


def ddpm(folder: Path) -> None:
    """An unconditional pipeline, and recipes that name it."""
    shutil.copytree(KEPT / "ddpm", folder / "model")
    _recipe(folder / "recipe.yaml", {"kind": "ddpm", "path": "model"})


def stable_diffusion(folder: Path) -> None:
    """Text to image, with an adapter in every format beside it."""
    pipeline = tiny_stable_diffusion_pipeline()
    pipeline.save_pretrained(folder / "model")
    _recipe(folder / "recipe.yaml", {"kind": "stable_diffusion", "path": "model"}, prompts=TEXTS)


def single_files(folder: Path) -> None:
    """A model and a VAE in one file each, the model as a pickle too, and the folder that has their config."""
    stable_diffusion(folder)
    tensors = {name: each.clone().contiguous() for name, each in in_one_file(tiny_stable_diffusion_pipeline()).items()}
    save_file(tensors, folder / "whole.safetensors")
    torch.save({"state_dict": tensors}, folder / "old.ckpt")
    first = "first_stage_model."
    save_file(
        {key[len(first) :]: each for key, each in tensors.items() if key.startswith(first)}, folder / "vae.safetensors"
    )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["vae"] = "vae.safetensors"
    (folder / "vae.yaml").write_text(yaml.safe_dump(recipe))


def sdxl(folder: Path) -> None:
    """A model with two text encoders."""
    tiny_sdxl_pipeline().save_pretrained(folder / "model")
    _recipe(folder / "recipe.yaml", {"kind": "sdxl", "path": "model"}, prompts=TEXTS)


def adapters(folder: Path) -> None:
    """Of peft, of diffusers, of kohya, each for the model beside them."""
    stable_diffusion(folder)
    unet = tiny_stable_diffusion_pipeline().unet
    factors = factors_for(unet, ("to_q", "to_v"), ranks=(2, 3), alphas=(2.0, 5.0))
    (folder / "peft").mkdir()
    save_file(peft_names(factors, "base_model.model."), folder / "peft/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_v"], "bias": "none"}
    ranks = {name: len(a) for name, (a, _, _) in factors.items() if len(a) != 2}
    config |= {"rank_pattern": ranks, "alpha_pattern": dict(ranks), "base_model_name_or_path": None}
    (folder / "peft/adapter_config.json").write_text(json.dumps(config))
    (folder / "diffusers").mkdir()
    save_file(peft_names(factors), folder / "diffusers/pytorch_lora_weights.safetensors")
    (folder / "kohya").mkdir()
    save_file(kohya(factors), folder / "kohya/name.safetensors", metadata={"ss_network_alpha": "2", "format": "pt"})
    (folder / "old").mkdir()
    torch.save(peft_names(factors), folder / "old/pytorch_lora_weights.bin")
    for name in ("peft", "diffusers", "kohya", "old"):
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"adapter": {"path": name}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def _recipe(file: Path, model: dict, **more: object) -> None:
    recipe = {
        "model": model, "adapter": {"rank": 1, "targets": ["to_q"]}, "sampler": {"steps": 2},
        "method": {"kind": "reinforce"}, "reward": [{"kind": "jpeg"}], "evaluate": {"every": 0},
        "run": {"rounds": 1, "images_per_round": 2}, **more,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(recipe))


def images(folder: Path, count: int = 3) -> None:
    """A folder as `memdiff sample` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels[number]).save(folder / f"image_{number:06d}.png")
    Image.fromarray(pixels[0]).save(folder / "grid.png")
    settings = {
        "source": "digits_text", "model": {"kind": "embedded", "name": "digits_text"}, "adapters": [],
        "lora_scale": 1.0, "adapter_steps": None, "prompts": TEXTS, "num_images": count, "batch_size": 1,
        "sampler": {"steps": 2, "eta": 1.0}, "seed": 0, "precision": "fp32", "out": str(folder),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))


def sampled(folder: Path) -> None:
    """Images and their settings."""
    images(folder / "samples")


def rewards(folder: Path) -> None:
    """The families' folders, each tiny and in its own format, and an image."""
    write_classifier(folder / "classifier")
    write_clip(folder / "clip", tiny_clip_config())
    torch.save(aesthetic_weights(24), folder / "aesthetic.pth")
    write_hps(folder / "hps", tiny_open_clip())
    _detector(folder / "detection")
    images(folder / "images", count=2)


def image_reward(folder: Path) -> None:
    """Its checkpoint as it is published, and as safetensors: all tensors in their sizes, zeros of eight bits."""
    zeros = {name: torch.zeros(shape, dtype=torch.float8_e4m3fn) for name, shape in RECORD["shapes"].items()}
    for name in ("published", "converted"):
        (folder / name).mkdir()
        (folder / name / "vocab.txt").write_text("\n".join(RECORD["vocabulary"]) + "\n")
    torch.save(zeros, folder / "published/ImageReward.pt")
    save_file(zeros, folder / "converted/ImageReward.safetensors")
    images(folder / "images", count=1)


def features(folder: Path) -> None:
    """The networks of eval's features, Inception in its full size with random weights, and images."""
    write_clip(folder / "clip", tiny_clip_config())
    (folder / "inception").mkdir()
    torch.manual_seed(0)
    network = torch.nn.Sequential(inception_layers())
    network.add_module("fc", torch.nn.Linear(NUM_FEATURES, 1008))
    torch.save(network.half().state_dict(), folder / "inception" / FILE)
    images(folder / "images", count=3)


def _detector(folder: Path) -> None:
    torch.manual_seed(0)
    text = {
        "vocab_size": len(VOCABULARY), "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 3, "max_position_embeddings": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    model = OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    shake(model, 0)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    size = {"height": 32, "width": 32}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "OwlViTImageProcessor", "size": size, "crop_size": size})
    )


def prompts(folder: Path) -> None:
    """The same texts in every format that is read, and sets in the formats of benchmarks."""
    (folder / "p.txt").write_text("\n".join(TEXTS) + "\n")
    (folder / "p.csv").write_text("prompt,number\n" + "".join(f'"{text}",1\n' for text in TEXTS))
    (folder / "p.tsv").write_text("Prompt\tCategory\tChallenge\n" + "".join(f"{text}\tA\tB\n" for text in TEXTS))
    (folder / "drawbench.csv").write_text("Prompts,Category\n" + "".join(f'"{text}",Colors\n' for text in TEXTS))
    (folder / "p.json").write_text(json.dumps(TEXTS))
    (folder / "q.json").write_text(json.dumps({"prompts": [{"prompt": text} for text in TEXTS]}))
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    geneval = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "a photo of two cats"}
    (folder / "geneval.jsonl").write_text(json.dumps(geneval) + "\n")


def deepspeed(folder: Path) -> None:
    """A user's own JSON, and a recipe."""
    (folder / "ds.json").write_text(json.dumps(DS_CONFIG))
    _recipe(folder / "recipe.yaml", {"kind": "embedded"}, reward=[{"kind": "digits"}])


def recipe(folder: Path) -> None:
    """A recipe with every section."""
    shutil.copyfile(KEPT / "digits_run/config.yaml", folder / "recipe.yaml")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
