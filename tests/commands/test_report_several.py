"""Reports of several runs, events, the plan beside the run, images with their words; what a screen reader needs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.reporting import comparison
from memdiff.reporting.folder import read_folder
from memdiff.reporting.grid import image_grid
from memdiff.reporting.html import write_comparison, write_report
from memdiff.reporting.page import HERE
from memdiff.reporting.samples import pairs, tiles_of
from memdiff.reporting.tables import event_table, plan_table
from memdiff.reporting.words import title_of

GIB = 2**30
RECIPE = """
model: {kind: sdxl, path: stabilityai/stable-diffusion-xl-base-1.0}
method: {kind: draft}
reward: [{kind: aesthetic, name: null, weight: 1.0}, {kind: jpeg, name: small, weight: 2.0}]
optimizer: {learning_rate: RATE}
"""


def make_run(folder: Path, rate: str = "0.001", rounds: int = 4) -> Path:
    """Rounds with alarms, pieces made again and peaks; grids of three images of one colour, with words."""
    (folder / "samples").mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"round": 0, "evaluate/reward_mean": 1.0, "evaluate/reward/small": 0.1}]
    rows += [
        {"round": number, "reward_mean": 0.1 * number, "images": 3 * number, "seconds_train": 10.0, "grad_norm": 2.0,
         "peak_bytes": 9 * GIB + number * GIB // 4, "pieces_redone": [0, 2, 2, 1][number - 1],
         "alarms": ["diversity fell"] if number == 3 else []}
        for number in range(1, rounds + 1)
    ]  # fmt: skip
    rows[-1] |= {"evaluate/reward_mean": 1.5, "evaluate/reward/small": 0.4, "evaluate/share/legible": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(RECIPE.replace("RATE", rate))
    (folder / "status.json").write_text(json.dumps({"state": "complete", "seconds": 100.0}))
    plan = {"peak_bytes": 8 * GIB, "live_bytes": 7 * GIB, "allowance_bytes": GIB, "budget_bytes": 14 * GIB}
    (folder / "plan.json").write_text(json.dumps(plan | {"peak_phase": "train", "items": {"unet": 5 * GIB, "x": 0}}))
    events = [("started", 0, "on 1 x T4"), ("resumed", 2, "on 2 x T4"), ("halved", 3, "smaller"), ("complete", 4, "")]
    lines = [json.dumps({"event": kind, "round": number, "text": text, "time": "t"}) for kind, number, text in events]
    (folder / "events.jsonl").write_text("\n".join([*lines[:3], "torn {", "[1]", *lines[3:]]))
    for number in (0, rounds):
        colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], dtype=np.uint8) + number
        images_NHWC = np.broadcast_to(colours[:, None, None], (3, 8, 8, 3))
        name = folder / "samples" / f"round_{number:06d}"
        image_grid(images_NHWC).save(name.with_suffix(".png"))
        scores = {"legible": [1.0, 0.0, 1.0], "aesthetic": [5.0 + number, 6.0, None], "small": [0.25, 0.5, 0.75]}
        name.with_suffix(".json").write_text(json.dumps({"prompts": ["a <b>", "a cat", "c"], "scores": scores}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "a"), make_run(folder / "b", rate="0.002", rounds=3)


class Outline(HTMLParser):
    """Headings in order, pictures without words, header cells without a scope, regions that no key reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.wrong: list[str] = []
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "html":
            self.language = attributes.get("lang") or ""
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "img" and not attributes.get("alt"):
            self.wrong.append("a picture without words")
        if tag == "th" and attributes.get("scope") not in ("row", "col"):
            self.wrong.append("a header cell without a scope")
        if attributes.get("class") == "scroll" and not (attributes.get("tabindex") == "0" and attributes["aria-label"]):
            self.wrong.append("a region that no key reaches")


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    return parsed


def test_pages_can_be_read_without_seeing_them(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """One h1, no level left out, words for every picture, scopes, regions that a key reaches."""
    for page in (write_report(runs[0], tmp_path / "one.html"), write_comparison([*runs], tmp_path / "two.html")):
        parsed = outline(page.read_text())
        assert parsed.levels[0] == 1 and parsed.levels.count(1) == 1 and parsed.language == "en"
        assert all(after <= before + 1 for before, after in zip(parsed.levels, parsed.levels[1:], strict=False))
        assert parsed.wrong == []


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_colours_can_be_told_apart() -> None:
    """4.5 : 1 for words, 3 : 1 for lines (WCAG 2.2, 1.4.3 and 1.4.11), on both pages. Black on white is 21 : 1."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5
    schemes = re.findall(r":root \{(.*?)\}", (HERE / "style.css").read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for name, colour in colours.items():
            least = 3.0 if re.fullmatch(r"c\d", name) else 4.5
            if name not in ("page", "card", "line"):
                assert min(contrast(colour, colours[back]) for back in ("page", "card")) >= least, name


def test_events_stand_in_the_order_of_the_rounds(runs: tuple[Path, Path]) -> None:
    """0, 2, 2, 1 pieces made again since the start of the process: 2 in round 2, and 0 in 4, which resumed at 1."""
    table = [(number, kind, text) for number, kind, text, _ in event_table(read_folder(runs[0]))]
    assert table == [
        (0, "started", "on 1 x T4"),
        (2, "resumed", "on 2 x T4"),
        (2, "redone", "2 pieces overflowed and were made again"),
        (3, "halved", "smaller"),
        (3, "alarm", "diversity fell"),
        (4, "complete", ""),
    ]


def test_the_plan_stands_beside_what_was_measured(runs: tuple[Path, Path]) -> None:
    """The highest of four rounds is 9 + 4/4 GiB, a quarter more than the 8 that were planned."""
    assert plan_table(read_folder(runs[0])) == [
        ("planned peak", "8.00 GiB: 7.00 live and 1.00 allowance, in train"),
        ("measured peak", "10.00 GiB"),
        ("measured against planned", "+25.0 %"),
        ("budget of the card", "14.00 GiB"),
    ]


def test_images_stand_over_their_words(runs: tuple[Path, Path]) -> None:
    """A grid of three is 2 wide; parts of degrees come before those that say yes or no."""
    run = read_folder(runs[0])
    tiles = tiles_of(run, 4, 3)
    assert [tile.getpixel((9, 9)) for tile in tiles] == [(14, 24, 34), (44, 54, 64), (74, 84, 94)]
    assert {tile.size for tile in tiles} == {(64, 64)}
    first, _, third = pairs(run)
    assert first.scores == (("aesthetic", "5 → 9"), ("small", "0.25 → 0.25"), ("legible", "1 → 1"))
    assert third.scores[0] == ("aesthetic", "n/a → n/a") and first.prompt == "a <b>"
    page = write_report(runs[0]).read_text()
    assert "<q>a &lt;b&gt;</q>" in page and "aesthetic 5 → 9" in page
    for broken in ("[]", '{"prompts": 7}', '{"prompts": ["a"], "scores": [1]}', "torn"):
        (runs[1] / "samples/round_000000.json").write_text(broken)
        assert write_report(runs[1]).read_text().rstrip().endswith("</html>")


def test_titles_come_from_the_recipe(runs: tuple[Path, Path]) -> None:
    page = write_report(runs[0]).read_text()
    title = "stabilityai/stable-diffusion-xl-base-1.0, rewarded by aesthetic and jpeg (small): draft"
    assert f"<h1>{title}</h1>" in page and "1 min 40 s" in page and "rounds 40 s, the rest loads" in page
    assert title_of({"model": {"path": "/home/me/my-model"}, "method": {"kind": "refl"}}) == "my-model: refl"
    for odd in ({}, {"model": "x", "method": []}, {"model": {"path": "a"}, "reward": [1, None]}):
        assert title_of(odd) == ""


def test_several_runs_stand_side_by_side(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Figures and curves of each, and the one key in which their recipes differ."""
    records = [read_folder(run) for run in runs]
    assert comparison.recipe_differences(records) == [("optimizer.learning_rate", ["0.001", "0.002"])]
    rows = dict(comparison.figure_rows(records))
    assert rows["rounds"] == ["4", "3"] and rows["small, fixed noise"] == ["0.1 → 0.4"] * 2
    assert rows["peak memory"] == ["10.00 GiB", "9.75 GiB"] and rows["alarms"] == ["1", "1"]
    page = write_comparison([*runs], tmp_path / "both.html").read_text()
    assert page.count('<li class="c1">b</li>') >= 4 and "Their rewards are not the same" not in page
    assert "a: 0.1 → 0.4; b: 0.1 → 0.3" in page
    (tmp_path / "c" / "a").parent.mkdir()
    assert comparison.names_apart([runs[0], tmp_path / "c" / "a"]) == [f"{runs[0].parent.name}/a", "c/a"]


def test_mistakes_of_a_comparison_are_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for several, words in (
        ([runs[0]] * 2, "given twice"),
        ([runs[0]] * 7, "up to 6 runs"),
        ([*runs, tmp_path], "metrics"),
    ):
        with pytest.raises(ConfigError, match=words):
            write_comparison(several, tmp_path / "none.html")
    with pytest.raises(ConfigError, match="can't write"):
        write_comparison([*runs], tmp_path / "missing" / "page.html")
    assert not (tmp_path / "none.html").exists()


def test_a_planted_grid_is_no_failure(runs: tuple[Path, Path]) -> None:
    """Words of more images than the grid has pixels."""
    words = {"prompts": ["x"] * 100_000, "scores": {}}
    for number in (0, 4):
        (runs[0] / f"samples/round_00000{number}.json").write_text(json.dumps(words))
        assert pairs(read_folder(runs[0])) == []
    Image.new("RGB", (1, 1)).save(runs[0] / "samples/round_000000.png")
    assert write_report(runs[0]).read_text().rstrip().endswith("</html>")
