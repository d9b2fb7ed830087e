"""Pages hold every text as text: no element of a page comes from what stands in a run, a folder or a prompt set."""

import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.fuzz.pages import CONTROLS, KINDS, browser, control_page, dumped, looked_at, report_page
from tests.fuzz.payloads import TEMPLATES, payloads

SECONDS_UNTIL_HUNG = 1800.0


class Elements(HTMLParser):
    """Tags with the names of their attributes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *sorted(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment",))


def elements_of(page: str) -> list[tuple[str, ...]]:
    parser = Elements()
    parser.feed(page)
    parser.close()
    return parser.elements


@pytest.mark.parametrize("kind", KINDS)
def test_payloads_make_no_elements(kind: str, tmp_path: Path) -> None:
    """Every twelfth in a report, whose plots take their time, every third in a comparison; the slow test has all."""
    plain = elements_of(KINDS[kind](tmp_path / "plain", "word").read_text())
    assert len(plain) > 20
    for number, text in list(enumerate(payloads("http://127.0.0.1:9/ran")))[:: 12 if kind == "report" else 3]:
        page = KINDS[kind](tmp_path / str(number), text).read_text(encoding="utf-8")
        assert elements_of(page) == plain, TEMPLATES[number]
        assert not set(page) & set("\x00\x1b\u202e"), TEMPLATES[number]


def test_the_parser_sees_what_is_not_escaped(tmp_path: Path) -> None:
    """Else the test above could not fail: of those that are elements in HTML, each is found in a page that escapes
    nothing."""
    plain = elements_of(control_page(tmp_path / "plain", "word").read_text())
    seen = 0
    for number, text in enumerate(payloads("http://127.0.0.1:9/ran")):
        seen += elements_of(control_page(tmp_path / str(number), text).read_text()) != plain
    assert len(TEMPLATES) >= 60 and seen >= 60


@pytest.mark.slow
def test_a_real_browser_finds_texts_alone(tmp_path: Path) -> None:
    """Every payload in a report and in a comparison, served and looked at in a browser: the elements are those of plain
    words, nothing runs, nothing is fetched. Where nothing is escaped, most of them run: the trial can see it. A report
    that is opened as a file is the same page."""
    program = browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    table = looked_at(program, tmp_path, seconds=SECONDS_UNTIL_HUNG)
    for kind in KINDS:
        assert table[kind] == {"pages": len(TEMPLATES), "other_elements": 0, "ran": 0, "fetched": 0, "left": 0}
    assert table["unescaped"]["ran"] > 20 and set(table) == {*KINDS, *CONTROLS}
    with tempfile.TemporaryDirectory() as profile:
        text = payloads("http://127.0.0.1:9/ran")[0]
        pages = [report_page(tmp_path / f"file {number}", words) for number, words in enumerate(("word", text))]
        plain, hostile = (dumped(program, page, Path(profile)) for page in pages)
        assert len(elements_of(plain)) > 20 and elements_of(hostile) == elements_of(plain)
        assert "<title>ran" not in hostile
