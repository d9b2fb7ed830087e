"""`memdiff eval`: sources side by side from the same noise, what is written of them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import memdiff as library
from memdiff import cli
from memdiff.errors import ConfigError
from memdiff.evaluation import evaluate as evaluation
from memdiff.evaluation.distances import kernel_inception_distance
from memdiff.evaluation.inception import InceptionFile
from memdiff.evaluation.request import Options, prepare
from memdiff.sampling.request import SampleRequest
from tests.evaluation.test_figures import fid_by_hand
from tests.evaluation.test_prompt_sets import DRAWBENCH, GENEVAL
from tests.helpers.processes import memdiff
from tests.helpers.reward_models import tiny_clip_config, write_clip
from tests.rewards.test_detection_reward import write as write_detector


def paint(folder: Path, count: int, seed: int, *, width: int = 20, height: int = 16) -> Path:
    """A folder of noise that is no sampler's."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"p{number:02d}.png")
    return folder


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


class Means(torch.nn.Module):
    """In Inception's place: the means of the three channels, for figures that a hand can check."""

    num_features = 3

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.mean(dim=(2, 3))


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    file = InceptionFile("somewhere/inception.pth", "6726825d" + 56 * "0", published=True)
    monkeypatch.setattr(evaluation, "load_inception", lambda source, resize, device: (Means(), file))


def test_the_command_on_digits(tmp_path: Path) -> None:
    """The real command: two samplings of one model from the same noise in other steps, and the figures of both."""
    assert run("sample", "digits", "--num-images", 6, "--steps", 3, "--seed", 5, "--out", tmp_path / "coarse") == 0
    done = memdiff(
        "eval", "fine=digits", "coarse", "--num-images", 6, "--steps", 4, "--seed", 5, "--digits",
        "--reward", "digits:mode=probability", "--out", "compared", "--gpus", 1, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "64 features and fewer images (fine 6, coarse 6)" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "compared" and "digits_frechet" in done.stdout
    document = json.loads((tmp_path / "compared/eval.json").read_text())
    fine, coarse = document["sources"]
    assert (fine["kind"], fine["settings"]["sampler"]["steps"], coarse["kind"]) == ("model", 4, "images")
    for source in (fine, coarse):
        scores = [image["scores"]["digits"] for image in source["images"]]
        figure = source["metrics"]["digits"]
        half = 1.959963984540054 * np.std(scores, ddof=1) / 6**0.5
        assert figure["value"] == pytest.approx(np.mean(scores)) and figure["images"] == 6
        assert (figure["low"], figure["high"]) == (
            pytest.approx(figure["value"] - half),
            pytest.approx(figure["value"] + half),
        )
        assert {"digits_frechet", "digits_recognised", "digits_5_to_9", "diversity_judge"} <= source["metrics"].keys()
    assert document["environment"]["torch"] and document["seed"] == 5
    with Image.open(tmp_path / "compared/eval.png") as picture:
        assert picture.width > 2 * 6 * 64  # two grids of six tiles
    page = (tmp_path / "compared/eval.html").read_text()
    assert "fine" in page and "data:image/png;base64," in page and "<script" not in page


def test_processes_are_those_of_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--gpus` reaches what `memdiff sample` samples with, once for each model; images are taken as they lie."""
    asked: list[tuple[str, int | None]] = []

    def sample(request: SampleRequest, gpus: int | None) -> Path:
        asked.append((request.source, gpus))
        folder = Path(request.out)
        folder.mkdir(parents=True)
        for number in range(request.num_images):
            Image.new("L", (20, 16)).save(folder / f"image_{number:06d}.png")
        return folder

    monkeypatch.setattr(evaluation, "sample_over_processes", sample)
    sources = ["digits", str(paint(tmp_path / "a", 2, 0)), "again=digits"]
    evaluation.evaluate(prepare(Options(sources, num_images=2, out=tmp_path / "out", digits=False)), gpus=4)
    assert asked == [("digits", 4), ("digits", 4)]


def test_same_noise_and_paired_differences(tmp_path: Path) -> None:
    """The same model twice draws the same images, and each difference is exactly 0; the library gives the figures."""
    compared = library.evaluate(
        {"one": "digits", "two": "digits"}, "jpeg:quality=90", num_images=3, steps=2, out=tmp_path, gpus=1
    )
    for number in range(3):
        files = [tmp_path / name / f"image_{number:06d}.png" for name in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert compared.figures["sources"][1]["minus_first"]["compressible"] == {
        "value": 0.0, "low": 0.0, "high": 0.0, "images": 3,
    }  # fmt: skip
    assert compared["one"]["compressible"]["images"] == 3 and compared._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(TypeError, match="no option num_image"):
        library.evaluate("digits", num_image=3)


@pytest.mark.usefixtures("means")
def test_fid_kid_and_diversity_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the means of the files' own pixels; JSON says which weights and which resize."""
    folders = {"a": paint(tmp_path / "a", 5, 0), "b": paint(tmp_path / "b", 5, 1), "real": paint(tmp_path / "r", 6, 2)}
    assert run("eval", folders["a"], folders["b"], "--real", folders["real"], "--out", tmp_path / "out") == 0
    means_by_name = {
        name: np.stack(
            [np.asarray(Image.open(file), dtype=np.float64).mean((0, 1)) / 255 for file in sorted(folder.iterdir())]
        )
        for name, folder in folders.items()
    }
    document = json.loads((tmp_path / "out/eval.json").read_text())
    for source in document["sources"]:
        metrics, x_NF = source["metrics"], means_by_name[source["name"]]
        assert metrics["fid"]["value"] == pytest.approx(fid_by_hand(x_NF, means_by_name["real"]), rel=1e-3, abs=1e-8)
        distances = [np.linalg.norm(x_NF[i] - x_NF[j]) for i in range(5) for j in range(i)]
        assert metrics["diversity_inception"]["value"] == pytest.approx(np.mean(distances), rel=1e-4)
        real_MF = torch.from_numpy(means_by_name["real"])
        kid = kernel_inception_distance(torch.from_numpy(x_NF), real_MF, 0)
        assert metrics["kid"]["value"] == pytest.approx(kid[0], rel=1e-3) and metrics["kid"]["low"] is None
        assert metrics["kid_subsets_std"]["value"] == pytest.approx(kid[1], rel=1e-2)
    assert document["inception"]["published"] and document["resize"]["inception"].startswith("bilinear")
    assert document["real"]["images"] == 6 and document["warnings"] == [] and "warning" not in capsys.readouterr().err


@pytest.mark.usefixtures("means")
def test_other_sizes_are_brought_to_one(tmp_path: Path) -> None:
    """Refused with the sizes and the way out; with --size each is cut and resized, and few images are a warning."""
    a, real = paint(tmp_path / "a", 2, 0), paint(tmp_path / "real", 2, 1, width=9, height=9)
    with pytest.raises(
        ConfigError, match=r"sizes differ: images of a are 20 x 16, .* of --real is 9 x 9; give --size N"
    ):
        prepare(Options([str(a)], real=str(real)))
    outcome = evaluation.evaluate(prepare(Options([str(a)], real=str(real), size=8)))
    assert set(outcome.results[0].metrics) == {"fid", "kid", "kid_subsets_std", "diversity_inception"}
    assert ["FID has 3 features and fewer images (a 2, --real 2)" in warning for warning in outcome.evaluation.warnings]


def test_clip_features_are_cosines(tmp_path: Path) -> None:
    """Against transformers' own model on images of its size, which nothing resizes."""
    model: Any = write_clip(tmp_path / "clip", tiny_clip_config())
    side: int = model.config.vision_config.image_size
    folder = paint(tmp_path / "a", 4, 0, width=side, height=side)
    options = Options([str(folder)], diversity=["clip"], clip=str(tmp_path / "clip"))
    figure = evaluation.evaluate(prepare(options)).results[0].metrics["diversity_clip"]
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float32) / 255 for file in sorted(folder.iterdir())])
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.no_grad():
        inputs = torch.from_numpy((pixels - mean) / std).float().permute(0, 3, 1, 2)
        embeds = model.get_image_features(pixel_values=inputs).pooler_output
    unit = torch.nn.functional.normalize(embeds, dim=-1)
    pairs = [1 - float(unit[i] @ unit[j]) for i in range(4) for j in range(i)]
    assert figure.value == pytest.approx(np.mean(pairs), abs=1e-5)


def test_prompt_sets_reach_texts_and_categories(tmp_path: Path) -> None:
    """A folder of images takes the set's texts in order; each category has its own mean."""
    (tmp_path / "drawbench.csv").write_text(DRAWBENCH)
    (tmp_path / "mine.py").write_text("def letters(images, prompts):\n    return [len(text) for text in prompts]\n")
    folder = paint(tmp_path / "a", 4, 0)
    reward = f"python:file={tmp_path / 'mine.py'},function=letters"
    options = Options([str(folder)], prompts=[tmp_path / "drawbench.csv"], rewards=[reward], out=tmp_path / "out")
    outcome = evaluation.evaluate(prepare(options))
    lengths = [len("A red colored car."), len("A stop sign, on a pole.")]
    assert outcome.results[0].scores["letters"] == [float(length) for length in lengths * 2]
    figures = outcome.results[0].categories(outcome.evaluation)
    assert {name: each["letters"].value for name, each in figures.items()} == {
        "Colors": lengths[0], "Conflicting": lengths[1],
    }  # fmt: skip


def test_geneval_with_a_detector(tmp_path: Path) -> None:
    """Checks of each image, a mean for each task, and the mean over tasks; colours are said to be left out."""
    write_detector("owlvit", tmp_path / "owl")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)))
    folder = paint(tmp_path / "a", 6, 0)
    options = Options([str(folder)], prompts=[tmp_path / "metadata.jsonl"], detector=str(tmp_path / "owl"))
    outcome = evaluation.evaluate(prepare(options))
    (result,) = outcome.results
    scores = result.scores["geneval_objects"]
    assert len(scores) == 6 and set(scores) <= {0.0, 1.0}
    tasks = [(scores[0] + scores[4]) / 2, (scores[1] + scores[5]) / 2, scores[2], scores[3]]
    assert [each["geneval_objects"].value for each in result.categories(outcome.evaluation).values()] == tasks
    assert result.metrics["geneval_objects_over_tasks"].value == pytest.approx(sum(tasks) / 4)
    assert "colours are not checked" in outcome.evaluation.warnings[0]


def test_geneval_needs_a_detector_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)))
    options = Options([str(paint(tmp_path / "a", 4, 0))], prompts=[tmp_path / "metadata.jsonl"])
    outcome = evaluation.evaluate(prepare(options))
    assert outcome.evaluation.warnings == ["GenEval's objects were not checked: give --detector PATH for that"]


MISTAKES = [
    (["nowhere/at/all"], "no such folder"),
    (["empty"], "empty is no source: neither a run folder"),
    (["a", "--real", "empty"], "empty"),
    (["a", "--real", "none"], "--real none: no real images there"),
    (["a", "--real", "single"], "holds 1 image; FID and KID need at least 2"),
    (["a", "b"], "sizes differ: images of a are 20 x 16"),
    (["x=a", "x=b"], "two sources are named x"),
    (["a", "--prompt", "x", "--prompts", "p.txt"], "can't be given together"),
    (["a", "--diversity", "vgg"], "--diversity must be one of clip, inception, judge"),
    (["a", "--resize", "lanczos"], "--resize must be pytorch-fid or clean-fid"),
    (["a", "--reward", "pickscore"], "give --prompt"),
    (["a", "digits", "--prompt", "x"], "makes images without prompts"),
    (["digits_text", "digits"], "makes images from texts; give --prompt TEXT"),
    (["a", "digits", "--height", "32"], "digits makes images of one size alone"),
    (["a", "digits", "--config", "a"], "--config goes with a model in one file, and no source is one"),
    (["a", "digits", "--best"], "--best needs a run folder among the sources"),
    (["a", "a=digits", "--out", "."], "two sources are named a"),
    (["x=a", "a=digits", "--out", "."], "would be sampled into"),
    (["a", "--real", "a", "--inception", "a"], "pt_inception-2015-12-05-6726825d.pth is needed in the folder a"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, nothing on stdout, no folder begun."""
    for name, count, width in (("a", 2, 20), ("b", 2, 8), ("single", 1, 20)):
        paint(tmp_path / name, count, 0, width=width)
    (tmp_path / "empty").mkdir()
    (tmp_path / "p.txt").write_text("a text\n")
    monkeypatch.chdir(tmp_path)
    assert run("eval", *words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("memdiff: error[2]: ") and said in line and captured.out == ""
    assert not (tmp_path / "evaluation").exists()


def test_without_torchmetrics_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = str(paint(tmp_path / "a", 2, 0))
    with pytest.raises(ConfigError, match="pip install 'torchmetrics"):
        prepare(Options([folder], real=folder))


def test_texts_that_are_not_the_sets_are_refused(tmp_path: Path) -> None:
    """A folder that memdiff sampled knows its texts; another set's figures would be about other images."""
    folder = tmp_path / "s"
    folder.mkdir()
    settings = {"num_images": 2, "sampler": {}, "prompts": ["one", "two"]}
    (folder / "settings.json").write_text(json.dumps(settings))
    for number in range(2):
        Image.new("RGB", (4, 4)).save(folder / f"image_{number:06d}.png")
    (tmp_path / "same.txt").write_text("one\ntwo\n")
    (tmp_path / "other.txt").write_text("one\nthree\n")
    assert list(prepare(Options([str(folder)], prompts=[tmp_path / "same.txt"])).subjects[0].texts) == ["one", "two"]
    with pytest.raises(ConfigError, match="made from other texts than --prompts"):
        prepare(Options([str(folder)], prompts=[tmp_path / "other.txt"]))
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t/settings.json").write_text(json.dumps(settings | {"prompts": ["one", "three"]}))
    with pytest.raises(ConfigError, match="s and t bring different texts of their own"):
        prepare(Options([str(folder), str(tmp_path / "t")]))
