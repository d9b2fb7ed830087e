"""memdiff push: huggingface_hub's own client against a hub on this machine that notes what it is sent."""

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from memdiff.cli import main
from memdiff.reporting.loading import PLACE
from tests.helpers.processes import ROOT, run

REPO = "me/sevens"


class Hub(ThreadingHTTPServer):
    """The five calls of a push: a repository, how each file goes, large files' places, large files, the commit."""

    daemon_threads = True

    def __init__(self, refuses: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Calls)
        self.refuses = refuses
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}  # by name, or by sha256 before the commit names them
        self.commits: list[list[dict[str, Any]]] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Calls(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        if self.server.refuses is not None:
            self._answer({"error": "Repository not found"}, 404)
            return
        self._answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.files[self.path.rpartition("/")[2]] = content
        self._answer({})

    def do_POST(self) -> None:
        hub, body = self.server, self._body()
        hub.tokens.add(self.headers.get("authorization", ""))
        if hub.refuses is not None:
            self._answer({"error": "You may not write here"}, hub.refuses)
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.url}/{REPO}", "id": REPO, "name": REPO})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular",
                 "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": each["oid"], "size": each["size"],
                 "actions": {"upload": {"href": f"{hub.url}/large/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]  # fmt: skip
            self._answer({"transfer": "basic", "objects": objects})
        elif self.path == f"/api/models/{REPO}/commit/main":
            hub.commits.append([json.loads(line) for line in body.splitlines()])
            self._answer({"commitUrl": f"{hub.url}/{REPO}/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer({"error": self.path}, 404)

    def log_message(self, format: str, *arguments: Any) -> None:
        del format, arguments

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, content: Any, status: int = 200) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run folder with a model of three files, and one that is nobody's business."""
    folder = tmp_path / "run"
    (folder / "model" / "unet").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {kind: embedded}\nmethod: {kind: reinforce}\nreward: [{kind: jpeg}]\n")
    (folder / "model" / "README.md").write_text(f'---\ntags: [memdiff]\n---\n# Sevens\nload("{PLACE}")\n')
    (folder / "model" / "model_index.json").write_text("{}")
    (folder / "model" / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "model" / ".hidden").write_text("no")
    return folder


def push(hub: Hub | None, *words: object, home: Path) -> Any:
    """The real command. xet would send large files to a service of its own, which is not stood in for."""
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": "hf_secret",
                   "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9" if hub is None else hub.url}  # fmt: skip
    return run([sys.executable, "-m", "memdiff", "push", *map(str, words)], env=environment)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_nothing_is_sent_without_yes(finished: Path, capsys: Any) -> None:
    """The files and their sizes, and where they would go."""
    code, shown, _ = said(capsys, "push", str(finished), REPO)
    assert code == 0 and shown.splitlines() == [
        f"3 files, 10.3 kB, from {finished}/model",
        "  README.md                      61 B",
        "  model_index.json                2 B",
        "  unet/weights.safetensors    10.2 kB",
        f"to the model repository {REPO}, private where it is new",
        "nothing was sent; --yes sends it",
    ]


def test_a_push_sends_the_model_and_its_card(finished: Path, hub: Hub, tmp_path: Path) -> None:
    """Private where it is new, one commit, weights whole, and the card says the repository's name."""
    done = push(hub, finished, REPO, "--yes", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPO}/commit/1"
    created = [(each["name"], each["organization"], each["visibility"]) for each in hub.created]
    assert created == [("sevens", "me", "private")]
    (lines,) = hub.commits
    sent = {line["value"]["path"]: line["value"] for line in lines if line["key"] != "header"}
    assert sent.keys() == {"README.md", "model_index.json", "unet/weights.safetensors"}
    readme = base64.b64decode(sent["README.md"]["content"]).decode()
    assert f'load("{REPO}")' in readme and PLACE not in readme
    oid = sent["unet/weights.safetensors"]["oid"]
    assert hub.files[oid] == (finished / "model/unet/weights.safetensors").read_bytes()
    assert hub.tokens == {"Bearer hf_secret"}


MISTAKES = {
    "no run": (("nowhere", REPO), "is no run folder"),
    "no repository": (("RUN", "sevens"), "REPO must be owner/name"),
    "no best model": (("RUN", REPO, "--best"), "holds no model_best yet"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, finished: Path, capsys: Any) -> None:
    words, message = MISTAKES[name]
    code, _, error = said(capsys, "push", *(str(finished) if word == "RUN" else word for word in words))
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_hub_that_is_not_there_is_told(finished: Path, tmp_path: Path) -> None:
    done = push(None, finished, REPO, "--yes", home=tmp_path)
    assert done.returncode == 1 and f"the hub did not take {REPO}" in done.stderr and done.stderr.count("\n") == 1


def test_a_hub_that_refuses_is_told_in_its_words(finished: Path, tmp_path: Path) -> None:
    with Hub(refuses=403) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = push(server, finished, REPO, "--yes", home=tmp_path)
        server.shutdown()
    assert done.returncode == 1 and "hf auth login with a token that may write" in done.stderr
    assert "hf_secret" not in done.stderr and done.stderr.count("\n") == 1 and server.commits == []
