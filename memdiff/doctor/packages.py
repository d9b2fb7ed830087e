"""Python and the installed packages against the bounds that memdiff declares."""

import importlib.metadata
import re
import sys
from dataclasses import dataclass

from memdiff.doctor.table import Finding


@dataclass(frozen=True)
class PackageFacts:
    """Declared requirements (None: memdiff has no metadata) and installed versions by lower-case name."""

    python: str
    requires_python: str
    requirements: list[str] | None
    versions: dict[str, str]
    torchvision_needs: str = ""  # torchvision's own requirement on torch


def probe_packages() -> PackageFacts:
    """Read the metadata of memdiff and of all installed packages."""
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions[_canonical(name)] = distribution.version
    try:
        requirements = importlib.metadata.requires("memdiff")
        requires_python = importlib.metadata.metadata("memdiff")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        requirements, requires_python = None, ""
    needs = importlib.metadata.requires("torchvision") or [] if "torchvision" in versions else []
    torchvision_needs = next((need for need in needs if re.match(r"torch\b(?!-)", need)), "")
    python = ".".join(str(part) for part in sys.version_info[:3])
    return PackageFacts(python, requires_python, requirements, versions, torchvision_needs)


def judge_packages(facts: PackageFacts) -> list[Finding]:
    """Python, every declared package against its bounds, and torchvision against torch."""
    findings = [_judge_python(facts)]
    if facts.requirements is None:
        advice = "Install it, so that versions can be checked: pip install -e . -c constraints.txt"
        findings.append(Finding("packages", "warn", "memdiff is not installed; bounds unknown", advice))
    else:
        findings.append(_judge_bounds(facts.requirements, facts.versions))
    if "torchvision" in facts.versions:
        findings.append(_judge_torchvision(facts))
    return findings


def _judge_python(facts: PackageFacts) -> Finding:
    from packaging.specifiers import SpecifierSet

    if facts.requires_python and facts.python not in SpecifierSet(facts.requires_python):
        return Finding("python", "fail", facts.python, f"Use Python {facts.requires_python}.")
    return Finding("python", "ok", f"{facts.python} at {sys.executable}")


def _judge_bounds(requirements: list[str], versions: dict[str, str]) -> Finding:
    from packaging.requirements import Requirement

    wrong, install, right = [], [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = versions.get(_canonical(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is outside {requirement.specifier}")
        else:
            right.append(f"{requirement.name} {version}")
            continue
        install.append(f'"{requirement.name}{requirement.specifier}"')
    if wrong:
        return Finding("packages", "fail", "; ".join(wrong), f"pip install {' '.join(install)}")
    return Finding("packages", "ok", ", ".join(right))


def _judge_torchvision(facts: PackageFacts) -> Finding:
    """A torchvision for another torch, or for another build of it, breaks imports of transformers and diffusers."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    torch, vision = Version(facts.versions.get("torch", "0")), Version(facts.versions["torchvision"])
    reason = ""
    if facts.torchvision_needs and torch.public not in Requirement(facts.torchvision_needs).specifier:
        reason = f"it needs {facts.torchvision_needs}, torch is {torch}"
    elif torch.local and vision.local and torch.local != vision.local:
        reason = f"it is built for {vision.local}, torch for {torch.local}"
    if reason:
        advice = "memdiff does not use it and it breaks imports: pip uninstall torchvision"
        return Finding("torchvision", "fail", f"{vision}: {reason}", advice)
    return Finding("torchvision", "ok", f"{vision} matches torch {torch}")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
