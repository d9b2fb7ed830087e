"""All checks of this machine, and what they found as a table.

Each check is a probe that only looks (`probe_* -> facts`) and a judge that only thinks (`judge_* -> Finding`).
"""

import os
from collections.abc import Callable

from rich.console import Console

from memdiff.doctor.compiler import OPS_CPU, OPS_GPU, judge_compiler, judge_operators, probe_compiler, probe_operators
from memdiff.doctor.devices import (
    DeviceFacts,
    collect_device_probe,
    judge_allocator,
    judge_devices,
    judge_links,
    judge_precision,
    start_device_probe,
)
from memdiff.doctor.host import judge_host, probe_host
from memdiff.doctor.hub import judge_hub, probe_hub
from memdiff.doctor.packages import judge_packages, probe_packages
from memdiff.doctor.table import Finding, as_table, first_line


def examine() -> list[Finding]:
    """All findings, in the order of the table. Takes less than 20 s, on a busy machine a few minutes; never raises."""
    return look()[0]


def look() -> tuple[list[Finding], DeviceFacts]:
    """The same, and what was seen of the devices."""
    child = start_device_probe()
    findings = _guard("packages", lambda: judge_packages(probe_packages()))
    findings += _guard("compiler", lambda: [judge_compiler(probe_compiler())])
    findings += _guard("hub", lambda: [judge_hub(probe_hub())])
    findings += _guard("host", lambda: judge_host(probe_host()))
    devices = collect_device_probe(child)
    findings += _guard(
        "devices",
        lambda: [
            judge_devices(devices),
            judge_precision(devices),
            judge_operators(devices, probe_operators(devices.extensions, OPS_GPU if devices.devices else OPS_CPU)),
            judge_links(devices),
            judge_allocator(devices, os.environ),
        ],
    )
    return findings, devices


def show(findings: list[Finding], console: Console | None = None) -> int:
    """Print the findings as a table; 0 where nothing fails, else 2."""
    (console or Console()).print(as_table(findings))
    return 2 if any(finding.state == "fail" for finding in findings) else 0


def _guard(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # a doctor must survive any patient; the type and text are the finding
        message = f"the check itself failed: {type(error).__name__}: {first_line(str(error))}"
        return [Finding(name, "warn", message, "Report this as a bug of memdiff.")]
