"""The hub that models come from, and the room to keep them."""

import http.client
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from memdiff.doctor.host import LEAST_DISK_BYTES, free_bytes
from memdiff.doctor.table import REINSTALL, Finding, first_line
from memdiff.runtime.units import GIB

SECONDS_HUB = 3.0


@dataclass(frozen=True)
class HubFacts:
    """`problem` is empty where the endpoint answered."""

    endpoint: str
    offline: bool
    cache: str
    cache_free_bytes: int
    problem: str


def probe_hub() -> HubFacts:
    """Ask the hub's endpoint for its header, for at most 3 s, unless HF_HUB_OFFLINE is set."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        return HubFacts("", False, "", 0, f"huggingface_hub can't be imported: {first_line(str(error))}")
    cache = Path(constants.HF_HUB_CACHE)
    problem = "" if constants.HF_HUB_OFFLINE else _head_problem(constants.ENDPOINT)
    return HubFacts(constants.ENDPOINT, bool(constants.HF_HUB_OFFLINE), str(cache), free_bytes(cache), problem)


def _head_problem(endpoint: str) -> str:
    """Why the endpoint does not answer, empty if it does. A thread, since a name lookup knows no time limit."""
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=SECONDS_HUB):
                answers.append("")
        except urllib.error.HTTPError as error:
            with error:
                answers.append("" if error.code < 500 else f"answers with status {error.code}")
        except urllib.error.URLError as error:
            answers.append(first_line(str(error.reason)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(first_line(str(error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_HUB + 0.5)
    return answers[0] if answers else f"no answer within {SECONDS_HUB:.0f} s"


def judge_hub(facts: HubFacts) -> Finding:
    """Whether models can be fetched, and whether there is room to keep them."""
    if not facts.endpoint:
        return Finding("hub", "fail", facts.problem, REINSTALL)
    cache = f"cache {facts.cache}, {facts.cache_free_bytes / GIB:.1f} GiB free"
    if facts.offline:
        return Finding(
            "hub", "ok", f"HF_HUB_OFFLINE is set; {cache}", "Only models in the cache or on disk can be used."
        )
    if facts.problem:
        advice = "Embedded, cached and local models still work; else set HF_ENDPOINT or a proxy, or HF_HUB_OFFLINE=1."
        return Finding("hub", "warn", f"{facts.endpoint}: {facts.problem}; {cache}", advice)
    if facts.cache_free_bytes < LEAST_DISK_BYTES:
        advice = "A model takes 1 to 7 GiB: free space, or set HF_HOME to a larger disk."
        return Finding("hub", "warn", f"{facts.endpoint} answers; {cache}", advice)
    return Finding("hub", "ok", f"{facts.endpoint} answers; {cache}")
