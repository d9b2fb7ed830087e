"""Reports and comparison pages that hold payloads, in a browser where there is one: `python -m tests.fuzz.pages`.

A payload stands wherever a text of a run, an image folder or a prompt set comes into a page. The page must have the
elements that it has with plain words in these places, in the browser's own reading of it, and nothing may run or be
fetched. Two pages that escape nothing show that the trial sees what it looks for, and what the pages' policy holds.
"""

import argparse
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from memdiff.evaluation.evaluate import Outcome, Result
from memdiff.evaluation.intervals import Estimate
from memdiff.evaluation.prompt_sets import Prompt
from memdiff.evaluation.request import Evaluation, Options, Subject
from memdiff.evaluation.show import write
from memdiff.reporting.html import write_report
from tests.fuzz.payloads import payloads

FAULTS = ("other_elements", "ran", "fetched", "left")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions",
    "--disable-sync", "--no-first-run", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio",
)  # fmt: skip
# Loads each page in a frame and says what its document holds: tags with the names of their attributes, its title.
WALK = """
function skeleton(node) {
  return [...node.querySelectorAll('*')].map(e => e.localName + '[' + [...e.attributes].map(a => a.name).sort() + ']');
}
"""
HARNESS = """<!doctype html><meta charset=utf-8><title>harness</title><body><script>
window.ran = [];
WALK
async function look(page) {
  const frame = document.createElement('iframe');
  const loaded = new Promise(done => { frame.onload = done; setTimeout(done, 20000); });
  frame.src = page;
  document.body.append(frame);
  await loaded;
  await new Promise(done => setTimeout(done, 60));
  let said;
  try { const d = frame.contentDocument; said = {title: d.title, skeleton: skeleton(d), url: d.URL}; }
  catch (error) { said = {title: String(error), skeleton: [], url: ''}; }
  frame.remove();
  return said;
}
(async () => {
  const results = {};
  for (const page of PAGES) {
    const before = ran.length;
    results[page] = {...await look(page), ran: ran.slice(before)};
  }
  await fetch('/results', {method: 'POST', body: JSON.stringify(results)});
})();
</script>"""


def browser() -> str | None:
    """The first of those that are installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def report_page(folder: Path, text: str) -> Path:
    """A run's report with `text` as its model, prompt, reward, metric, message, alarm, environment and name."""
    name = re.sub(r"[/\x00]", "_", text)[:80]
    run = folder / (name.encode(errors="ignore").decode().strip() or "run")
    run.mkdir(parents=True)
    reward = re.sub(r"\s", "_", text)
    row = {"round": 1, f"reward/{reward}": 0.5, text: 1.0, "alarms": [text, f"{text} fell"]}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    environment = {"devices": [text], "versions": {"torch": text, text: text}, text: {text: text}}
    status = {"state": "failed", "message": text, "started": text, "environment": environment}
    (run / "status.json").write_text(json.dumps(status))
    (run / "judge.json").write_text(json.dumps({"before": {"num_images": 9}, "after": {"num_images": text}}))
    recipe = {"model": {"path": text}, "method": {"kind": text}, "prompts": [text], "reward": [{"name": text}]}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return write_report(run)


def eval_page(folder: Path, text: str) -> Path:
    """A comparison with `text` as its sources' names and places, as metric, category, warning and version."""
    folder.mkdir(parents=True)
    files = [folder / f"image_{number:06d}.png" for number in range(2)]
    for file in files:
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(file)
    subject = Subject(text, text, None, files, [text, text])
    result = Result(subject, files, {text: [0.4, 0.6]}, {text: Estimate(0.5, 0.4, 0.6, 2)})
    evaluation = Evaluation(
        Options(sources=[text], out=folder), [subject], 2, [], [Prompt(text, category=text)], parts={}, real=[],
        digits=False, diversities=[], resize="pytorch-fid", warnings=[text],
    )  # fmt: skip
    return write(Outcome(evaluation, [result], None, {"torch": text, text: text})) / "eval.html"


def control_page(folder: Path, text: str, policy: str = "") -> Path:
    """What a page that escapes nothing would be."""
    folder.mkdir(parents=True)
    page = folder / "control.html"
    head = f"<!doctype html><meta charset=utf-8>{policy}<title>control</title>"
    page.write_text(f'{head}<body><p title="{text}">{text}</p>', errors="surrogatepass")
    return page


CONTROLS = {"unescaped": False, "policy": True}  # whether the pages' policy stands in them
KINDS = {"report": report_page, "eval": eval_page}


def make_pages(folder: Path, address: str) -> dict[str, Path]:
    """Of each kind one with plain words and one with each text, and for each text two that do not escape it.

    A text of kind K calls `address`/K where it comes to that.
    """
    made = {}
    for kind, make in KINDS.items():
        made[f"{kind} plain"] = make(folder / kind / "plain", "word")
        for number, text in enumerate(payloads(f"{address}/{kind}")):
            made[f"{kind} {number}"] = make(folder / kind / str(number), text)
    policy = re.search(r"<meta http-equiv=.*?>", made["report plain"].read_text())
    assert policy is not None
    for kind, head in CONTROLS.items():
        for number, text in enumerate(payloads(f"{address}/{kind}")):
            made[f"{kind} {number}"] = control_page(folder / kind / str(number), text, policy[0] if head else "")
    return made


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, takes results, notes what was fetched from the payloads' address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.done = folder, {}, threading.Event()
        self.fetched: list[str] = []
        self.page = ""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        """Where this server is reached."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def translate_path(self, path: str) -> str:
        """Pages are named by number: the folders' own names are payloads."""
        return str(self.server.folder / path.strip("/").partition("?")[0])

    def do_GET(self) -> None:
        """The harness, a page, or a call that a payload made."""
        if self.path.startswith("/ran/"):
            self.server.fetched.append(self.path)
            return self.send_error(404)
        if self.path == "/harness":
            content = self.server.page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None
        return super().do_GET()

    def do_POST(self) -> None:
        """What the harness saw."""
        self.server.results = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing on the terminal."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """In a thread, until it is left."""
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def looked_at(program: str, folder: Path, *, seconds: float) -> dict[str, dict[str, int]]:
    """What the browser saw, by kind of page: a count of pages, and of those with another skeleton, that ran something,
    that fetched something, that are another page now."""
    with serving(folder / "served") as server:
        made = make_pages(folder / "made", f"{server.address}/ran")
        (folder / "served").mkdir(exist_ok=True)
        names = {}
        for number, (name, page) in enumerate(made.items()):
            shutil.copyfile(page, folder / "served" / f"{number}.html")
            names[f"/{number}.html"] = name
        server.page = HARNESS.replace("WALK", WALK).replace("PAGES", json.dumps(list(names)))
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0"]
        with subprocess.Popen(
            [*command, f"{server.address}/harness"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                finished = server.done.wait(seconds)
            finally:
                process.terminate()
        assert finished, f"the browser did not look at all pages in {seconds:.0f} s"
        seen = {names[page]: said for page, said in server.results.items()}
        return {kind: _counts(kind, seen, server.fetched) for kind in (*KINDS, *CONTROLS)}


def _counts(kind: str, seen: dict, fetched: Sequence[str]) -> dict[str, int]:
    pages = [said for name, said in seen.items() if name.startswith(f"{kind} ") and name != f"{kind} plain"]
    plain = seen.get(f"{kind} plain")
    return {
        "pages": len(pages),
        "other_elements": sum(plain is not None and said["skeleton"] != plain["skeleton"] for said in pages),
        "ran": sum(bool(said["ran"]) or said["title"].startswith("ran ") for said in pages),
        "fetched": len({path for path in fetched if path.startswith(f"/ran/{kind}/")}),
        "left": sum(not said["url"].endswith(".html") for said in pages),
    }


def dumped(program: str, page: Path, profile: Path) -> str:
    """A page as the browser has it when it was opened as a file."""
    command = [program, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300).stdout


def main() -> int:
    """A line for each kind of page. Exit code 1 where a report or a comparison is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0, help="until the browser is given up")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    program = browser()
    if program is None:
        say(f"no browser here: none of {', '.join(BROWSERS)}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        table = looked_at(program, Path(folder), seconds=arguments.seconds)
    for kind, counts in table.items():
        say(f"{kind:10} {json.dumps(counts)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")
    return int(any(table[kind][what] for kind in KINDS for what in FAULTS))


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
