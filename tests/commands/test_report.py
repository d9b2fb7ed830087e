import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.reporting import plots
from memdiff.reporting.folder import best_round, number, read_folder
from memdiff.reporting.grid import image_grid, spread, write_evolution
from memdiff.reporting.headline import flatten
from memdiff.reporting.html import write_report
from memdiff.reporting.rows import read_rows
from memdiff.reporting.sections import wilson
from memdiff.reporting.words import printable

ROUNDS = 6
PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "'\"><svg/onload=alert(1)//",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "</title><h1>gone</h1>",
    "</style><style>body{display:none}</style>",
    "</pre><iframe src=javascript:alert(1)></iframe>",
    "</table></div></section></main><p>out",
    "<!-- ",
    "--><script>alert(1)</script>",
    "<![CDATA[<b>x</b>]]>",
    "{{ 7 * 7 }}{% for x in y %}{{ self.__init__ }}",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><input name=q>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "&lt;script&gt;&amp;&#60;b&#62;",
    "<math><mtext><table><mglyph><style><!--</style><img onerror=alert(1) src>",
    "$\\frac{1}{0$ _private \\unknown{",
    "\u202egnp.exe\u2066 \x00 \x1b[31m \ud800",
    "<" * 500 + "x" * 5000,
]


class Skeleton(HTMLParser):
    """Tags with the names of their attributes, in order; texts apart."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, ()))

    def handle_comment(self, data):
        self.tags.append(("comment", (data,)))

    def handle_data(self, data):
        self.texts.append(data)


def parse(page):
    skeleton = Skeleton()
    skeleton.feed(page)
    skeleton.close()
    return skeleton


def row_of(number, name, key):
    row = {
        "round": number,
        "update": number,
        "images": 20 * number,
        "images_in_round": 20,
        "reward_mean": 0.1 * number,
        "reward_std": 0.2,
        f"reward/{name}": 0.05 * number,
        f"reward_std/{name}": 0.1,
        f"share/{name}": 0.1 * number,
        "grad_norm": 1.0 / number,
        "loss_scale": 2.0**number,
        "skipped": 0,
        "lr": 1e-5,
        "seconds_rollout": 2.0,
        "seconds_reward": 0.5,
        "seconds_train": 7.5,
        "peak_bytes": 3 * 2**30,
        "advantage_std": 1.0,
        "diversity_pixel": 0.3 - 0.01 * number,
        "step_gradient_norm": [0.1 * number, 0.2, 0.4, None],
        key: 3.0 + number,
    }
    return row | ({"evaluate/best": number == 4} | evaluated(number, name) if number % 2 == 0 else {})


def evaluated(number, name):
    return {
        "evaluate/reward_mean": 0.1 * number,
        f"evaluate/reward/{name}": 0.1,
        f"evaluate/share/{name}": 0.5,
        "evaluate/images": 16,
    }


def make_run(
    folder, name="digit", key="critic_loss", message="done", environment=None, recipe="run: {rounds: 6}\n", lean=False
):
    """A made-up run of six rounds with every file a run folder can have; lean: only the columns with a free name."""
    (folder / "samples").mkdir(parents=True)
    rows = [{"round": 0} | evaluated(0, name)] + [row_of(number, name, key) for number in range(1, ROUNDS + 1)]
    if lean:
        rows = [{column: row[column] for column in row if column in ("round", key) or name in column} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = {"state": "complete", "exit_code": 0, "round": ROUNDS, "message": message, "started": "2026-01-01T00:00"}
    status["environment"] = environment or {"devices": ["Tesla T4", "Tesla T4"], "versions": {"torch": "2.13.0"}}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(recipe, errors="surrogatepass")
    before = {"num_images": 100, "minority_share": 0.1, "share_low": 0.05, "share_high": 0.17}
    after = {"num_images": 100, "minority_share": 0.5, "share_low": 0.4, "share_high": 0.6, "frechet_distance": 4.25}
    (folder / "judge.json").write_text(json.dumps({"before": before, "after": after}))
    (folder / "plan.json").write_text(json.dumps({"peak_bytes": 2**31, "budget_bytes": 2**32}))
    generator = np.random.default_rng(0)
    for index in (0, 2, 4, 6):
        images_NHWC = generator.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
        image_grid(images_NHWC).save(folder / "samples" / f"round_{index:06d}.png")
    return folder


@pytest.fixture(scope="module")
def lean_page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs") / "run", lean=True, recipe="# \nmodel: 1\n")
    return write_report(run).read_text()


def sections_of(page):
    return set(re.findall(r'<section id="(\w+)">', page))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "plain")).read_text()


def test_page_shows_every_section_and_figure(page):
    """A whole run gives all sections; headline and tables hold the numbers that the rows hold."""
    assert re.findall(r'<section id="(\w+)">', page) == [
        "samples", "rewards", "evaluation", "share", "judge", "diversity", "diagnostics", "other", "constants", "cost",
        "recipe", "environment",
    ]  # fmt: skip
    text = " ".join(" ".join(parse(page).texts).split())
    assert "reward 0.1 → 0.6" in text
    assert "6 rounds · 120 images · 1 min · 2 x Tesla T4 · torch 2.13.0" in text  # 6 x (2 + 0.5 + 7.5) s
    assert "10.0 % (5.0 to 17.0)" in text and "50.0 % (40.0 to 60.0)" in text and "4.25" in text
    assert "round 0 (before training)" in text and "round 4 (middle, best)" in text and "round 6 (last)" in text
    assert "train 45 s 75.0 % 7.5 s" in text  # 6 x 7.5 of 60 s
    assert "run: {rounds: 6}" in text
    assert "Critic loss" in text and "critic_loss" not in text


def test_what_never_changes_is_a_line_of_text(tmp_path):
    """Zero, one, 1,600 and a learning rate in every round, and 1 with fp32's rounding: a row of a table, and no plot.
    What has one number alone, or changes by a thousandth, keeps its plot; no heading is a raw key."""
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row |= {"clip_fraction": 0.0, "approx_kl": 0.0, "pieces_redone": 0, "reward_queries": 1600}
        row |= {"advantage_std": 1.0 + 1e-7 * row["round"], "kl_to_base": 1.0 + 1e-3 * row["round"]}
    rows[1]["value_loss"] = 2.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text()
    plotted = re.findall(r"<h3>([^<]+)</h3>", page)
    table = page.partition('<section id="constants">')[2].partition("</section>")[0]
    said = dict(re.findall(r'<th scope="row">([^<]+)</th><td>([^<]+)</td>', table))
    assert said == {
        "Skipped updates": "0", "Share of ratios clipped": "0", "KL to the policy that sampled": "0",
        "Pieces made again": "0", "Images scored": "1,600", "Spread of the advantages": "1", "Learning rate": "1e-05",
    }  # fmt: skip
    assert not set(said) & set(plotted)
    assert {"KL to the base model", "Loss of the value function", "Gradient norm", "Critic loss"} <= set(plotted)
    assert not [heading for heading in plotted if "_" in heading]


@pytest.mark.parametrize(("low", "high"), [(0.0281, 0.0441), (0.9, 1.1), (0.02, 0.19), (0.013, 0.9), (3e-4, 2e3)])
def test_an_axis_has_two_ticks_or_more(low, high):
    """Of norms that span little and much."""
    svg = plots.line_plot([plots.Series([1, 2, 3], [low, high, low])], "round", "norm", log_base=10)
    y_axis = svg.partition('id="matplotlib.axis_2"')[2]
    heights = [float(y) for y in re.findall(r'id="ytick_\d+">.*?<use [^>]*y="([\d.]+)"', y_axis, re.DOTALL)]
    assert len(set(heights)) >= 2


@pytest.mark.parametrize("alone", [True, False])
def test_no_plot_stands_there_twice(alone, tmp_path):
    """The only part of a reward is its total; a share has a plot with its interval; in fp32 there is no loss scale."""
    run = make_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows if alone else ():
        row |= {"loss_scale": 1.0} if row["round"] else {}
        for prefix in ("", "evaluate/"):
            if f"{prefix}reward_mean" in row:
                row[f"{prefix}reward/digit"] = row[f"{prefix}reward_mean"]
                del row[f"{prefix}share/digit"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = re.findall(r"<h3>([^<]+)</h3>", write_report(run).read_text())
    assert shown.count("Part: digit") == (0 if alone else 2), shown
    assert ("Loss scale" in shown, "Gradient norm" in shown) == (not alone, True)


def test_page_is_self_contained_and_allows_nothing(page):
    """No script, no inline style or handler, no address but `data:`; the policy's hash is the style sheet's."""
    skeleton = parse(page)
    tags = {tag for tag, _ in skeleton.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "a", "svg"}
    assert not [name for _, name, _ in skeleton.attributes if name.startswith("on") or name == "style"]
    addresses = [value for _, name, value in skeleton.attributes if name in ("src", "srcset", "href")]
    assert len(addresses) > 20
    assert all(re.match(r"data:image/(svg\+xml|png|jpeg|gif);base64,", address) for address in addresses)
    policy = next(value for tag, name, value in skeleton.attributes if (tag, name) == ("meta", "content"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_plots_have_labels_and_no_text_of_the_run(page):
    """Each embedded plot is well-formed SVG without script or link, has axis labels, and comes in light and dark."""
    encoded_plots = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)
    assert len(encoded_plots) % 2 == 0 and len(encoded_plots) >= 20
    for encoded in encoded_plots:
        svg = base64.b64decode(encoded).decode()
        root = ElementTree.fromstring(svg)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "digit" not in svg and "critic_loss" not in svg and "script" not in svg
        assert any(text and text.startswith(("round", "step")) for text in texts)
    light, dark = base64.b64decode(encoded_plots[1]).decode(), base64.b64decode(encoded_plots[0]).decode()
    assert plots.INK not in dark and plots.COLOURS[0] in light and plots.COLOURS[0] not in dark


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_never_changes_the_skeleton(lean_page, payload, tmp_path):
    """The payload stands in the reward's name, a metric's key, the message, the recipe and the environment."""
    environment = {"devices": [payload, payload], "versions": {"torch": payload}}
    run = make_run(tmp_path / "run", payload, payload, payload, environment, f"# {payload}\nmodel: 1\n", lean=True)
    hostile = write_report(run).read_text(encoding="utf-8")
    assert parse(hostile).tags == parse(lean_page).tags
    shown = "".join(parse(hostile).texts)
    assert printable(payload) in shown
    assert not set(shown) & set("\x00\x1b\u202e\u2066\ud800")


def test_hostile_folder_name_and_status(tmp_path):
    """A run folder's own name, an unknown state and a status of wrong types are shown as text."""
    run = make_run(tmp_path / "<img src=x onerror=alert(1)>")
    (run / "status.json").write_text(
        json.dumps({"state": '"><script>', "message": ["<b>"], "started": 1e99, "environment": "<i>x</i>"})
    )
    skeleton = parse(write_report(run).read_text())
    assert not {tag for tag, _ in skeleton.tags} & {"script", "i"}
    assert "<img src=x onerror=alert(1)>" in "".join(skeleton.texts)
    assert ("span", "class", "badge unknown") in skeleton.attributes


def test_no_run_and_no_rows_are_one_line_errors(tmp_path):
    """A missing folder, a folder without metrics, and metrics without a row are a user's mistake each."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for run, words in ((tmp_path / "missing", "not a folder"), (empty, "no metrics.jsonl")):
        with pytest.raises(ConfigError, match=words) as caught:
            write_report(run)
        assert "\n" not in str(caught.value)
    for content in ("", "\n\n", '{"round": 1, "rew', '{"loss": 1}\n', '{"round": true}\n'):
        (empty / "metrics.jsonl").write_text(content)
        with pytest.raises(ConfigError, match="no row of a round yet"):
            write_report(empty)
    assert list(empty.iterdir()) == [empty / "metrics.jsonl"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"round": 1}],
        [{"round": 0, "evaluate/reward_mean": 0.5}],
        [{"round": 1, "reward_mean": 0.5, "reward_std": None, "share/a": 0.5, "step_gradient_norm": [None]}],
        [{"round": 1, "reward_mean": 1e99, "grad_norm": 10**400, "lr": -1.0, "peak_bytes": 0, "x": 1e-320}],
        [{"round": 1, "reward_mean": -(10**99), "reward_std": math.inf, "share/a": 7, "images_in_round": 0}] * 3,
        [
            {"round": n, "step_gradient_norm": [0.0, -1.0, None, "x", 5e-324][:n], "seconds_train": 0}
            for n in range(1, 6)
        ],
        [{"round": n, "reward_mean": None, "reward/a": "high", "seconds_x": {}, "evaluate/images": []} for n in (1, 2)],
        [{"round": 1, "reward_mean": math.nan, "evaluate/best": True, "skipped": True}, {"round": 3, "reward_mean": 2}],
        [{"round": n, "reward_mean": 0.5, "a/b": n, **{f"k{i}": i for i in range(45)}} for n in (1, 2)],
    ],
)
def test_odd_rows_make_a_page(rows, tmp_path):
    """Null, missing, infinite, huge and wrongly typed values become gaps: a page appears, without a warning."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path).read_text()
    assert page.rstrip().endswith("</html>")
    assert ">nan<" not in page and "nan →" not in page


def test_broken_optional_files_become_notes(tmp_path):
    """Broken JSON, a YAML bomb, a text that is no PNG and no GIF are named in the notes; the rest is shown."""
    run = make_run(tmp_path / "run")
    (run / "status.json").write_text("[" * 100_000)
    (run / "judge.json").write_text("[1]")
    bomb = "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    (run / "config.yaml").write_bytes(bomb.encode() + b"\xff\xfe")
    (run / "samples" / "round_000002.png").write_text("<svg onload=alert(1)>")
    (run / "samples" / "round_000004.png").write_bytes((run / "samples" / "round_000006.png").read_bytes()[:100])
    (run / "samples" / "evolution.gif").write_text("GIF89a<script>")
    page = write_report(run).read_text()
    notes = page[page.index('<section id="notes">') :]
    for name in ("status.json", "judge.json", "round_000004.png", "not a readable image"):
        assert name in notes
    assert "rewards" in sections_of(page) and "judge" not in sections_of(page)
    assert "data:image/gif" not in page


def test_links_that_lead_out_of_the_run_are_not_followed(tmp_path):
    """A planted link shows no foreign file, and the page is not written through one."""
    run = make_run(tmp_path / "run")
    secret = tmp_path / "secret.txt"
    secret.write_text("foreign text")
    for name in ("config.yaml", "report.html"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(secret)
    page = write_report(run)
    assert not page.is_symlink() and "foreign text" not in page.read_text()
    assert secret.read_text() == "foreign text"
    assert sorted(path.name for path in run.glob("*report*")) == ["report.html"]


def test_repeated_rounds_count_once(tmp_path):
    """A run that was resumed may write a round twice: the last row counts, and a note says so."""
    rows = [{"round": 1, "reward_mean": 0.0}, {"round": 2, "reward_mean": 5.0}, {"round": 2, "reward_mean": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_folder(tmp_path)
    assert [row["reward_mean"] for row in run.training] == [0.0, 1.0]
    assert run.notes == ["Rows left out: 1, which repeat a round (its last row counts) or name none."]


def test_rows_keep_all_but_a_torn_end(tmp_path):
    """Only a last line without newline may be torn; every prefix of a file gives exactly its whole rows."""
    path = tmp_path / "metrics.jsonl"
    whole = b"".join(json.dumps({"round": n, "name": "\u00e9"}, ensure_ascii=False).encode() + b"\n" for n in range(3))
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        ends = [place + 1 for place, byte in enumerate(whole[: length + 1]) if byte == ord("}")]
        assert len(read_rows(path)) == sum(end <= length for end in ends)
    path.write_bytes(b'{"round": 1, "r\n{"round": 2}\n')
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read_rows(path)
    path.write_bytes(b'{"round": 1}\n{"round":\n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        read_rows(path)
    path.write_bytes(b"{}\n7\n")
    with pytest.raises(ConfigError, match="line 2 must be a JSON object, got int"):
        read_rows(path)
    with pytest.raises(ConfigError, match="can't read"):
        read_rows(tmp_path / "missing.jsonl")


def test_wilson_interval_by_hand():
    """5 of 10, z = 1.96: centre 0.5; half = z sqrt(0.025 + z2/400) / (1 + z2/10) = 0.3659 / 1.38415 = 0.26341.

    0 of 10: low 0, high z2 / (10 + z2) = 3.84146 / 13.84146 = 0.27753.
    """
    assert wilson(0.5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-4)
    assert all(
        math.isnan(edge) for bad in ((0.5, 0), (1.5, 9), (math.nan, 9), (0.5, math.nan)) for edge in wilson(*bad)
    )


def test_best_round_prefers_the_marks():
    """The last marked round; else the highest evaluation; else none."""
    rows = [{"round": 0, "evaluate/reward_mean": 9.0}, {"round": 5, "evaluate/best": True}, {"round": 9}]
    assert best_round(rows) == 5
    assert best_round([rows[0], {"round": 3, "evaluate/reward_mean": None}]) == 0
    assert best_round([{"round": 3}]) is None


def test_number_and_flatten():
    """Only finite numbers count; nested objects become dotted pairs, equal items of a list are counted."""
    assert number(2) == 2.0 and number(True) == 1.0
    assert all(math.isnan(number(bad)) for bad in (None, "1", [], math.inf, math.nan, 10**400, -1e101))
    nested = {"a": {"b": 1, "c": None}, "d": ["x", "x", "y"]}
    assert flatten(nested) == [("a.b", "1"), ("d", "2 x x, y")]


def test_grid_places_and_enlarges_tiles():
    """Tile i lies at row i // columns; 8 x 8 pixels become 64 x 64 squares of one colour; order and colour are kept."""
    images_NHWC = np.zeros((5, 8, 8, 3), dtype=np.uint8)
    images_NHWC[np.arange(5), :, :, 0] = np.array([10, 20, 30, 40, 50])[:, None, None]
    images_NHWC[4, 7, 7] = (1, 2, 3)
    grid = image_grid(images_NHWC, columns=2)
    assert grid.size == (2 * 64 + 2, 3 * 64 + 2 * 2)
    corners = [grid.getpixel((column * 66, row * 66)) for row in range(3) for column in range(2)]
    assert corners == [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0), (50, 0, 0), (255, 255, 255)]
    assert grid.getpixel((63, 2 * 66 + 63)) == grid.getpixel((56, 2 * 66 + 56)) == (1, 2, 3)
    assert image_grid(np.zeros((2, 100, 90, 1), np.uint8)).size == (2 * 90 + 2, 100)
    labelled = image_grid(images_NHWC, columns=5, labels=["a", "<b>", "\n\x00", "", "long " * 99])
    assert labelled.height > 64 and labelled.width == 5 * 64 + 4 * 2
    assert len(np.unique(np.asarray(labelled)[64:])) > 2  # ink under the tiles
    for bad in (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"images must be|at least one pixel"):
            image_grid(bad)


def test_evolution_has_a_frame_a_file_with_a_margin(tmp_path):
    """Frames follow the files, on one canvas with a margin for the round; the last is held; 60 frames at most."""
    paths = []
    for index in range(70):
        size = (80, 64) if index else (64, 64)
        Image.new("RGB", size, (3 * index, 0, 0)).save(tmp_path / f"round_{index:06d}.png")
        paths.append(tmp_path / f"round_{index:06d}.png")
    write_evolution(paths[:3], tmp_path / "few.gif")
    with Image.open(tmp_path / "few.gif") as gif:
        assert gif.size[0] == 80 and gif.size[1] > 64
        colours, durations = [], []
        for index in range(3):
            gif.seek(index)
            colours.append(gif.convert("RGB").getpixel((5, 5)))
            durations.append(gif.info["duration"])
        with pytest.raises(EOFError):
            gif.seek(3)
    assert colours == [(0, 0, 0), (3, 0, 0), (6, 0, 0)]
    assert durations == [400, 400, 2000]
    write_evolution(paths, tmp_path / "many.gif")
    with Image.open(tmp_path / "many.gif") as gif, pytest.raises(EOFError):
        gif.seek(60)
    assert spread(70, 60)[0] == 0 and spread(70, 60)[-1] == 69 and len(set(spread(70, 60))) == 60
    (tmp_path / "broken.png").write_text("no image")
    for files, words in (([], "no images"), ([tmp_path / "broken.png"], "not a readable image")):
        with pytest.raises(ConfigError, match=words):
            write_evolution(files, tmp_path / "none.gif")
    assert not list(tmp_path.glob("none*")) and not list(tmp_path.glob("*.tmp"))


def test_report_room_needs_no_torch_for_grids():
    """The trainer and the sampler import grid and rows on every rank: neither loads torch, matplotlib or jinja2."""
    for name in ("grid", "rows"):
        source = (Path(plots.__file__).parent / f"{name}.py").read_text()
        imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
        assert imported <= {"math", "re", "json", "pathlib", "typing", "numpy", "PIL", "memdiff"}
