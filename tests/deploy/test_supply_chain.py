"""What an image is made of: locked by hash, as pinned, and nothing known to be vulnerable."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ("build", "cpu", "cuda", "supply", "test")
FLOORS = {
    "starlette": "1.0.1",
    "h11": "0.16.0",
    "jinja2": "3.1.6",
    "torch": "2.10",
    "transformers": "5.3.0",
}
"""The first version without the holes that this server would expose."""


def pins(text: str) -> dict[str, str]:
    lines = (line.split("#")[0].split(" \\")[0].strip() for line in text.splitlines())
    requirements = (Requirement(line) for line in lines if line and not line.startswith("-"))
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in requirements
    }


def lock(name: str) -> str:
    return (ROOT / "deploy" / f"requirements-{name}.txt").read_text(encoding="utf-8")


def workflows() -> list[Path]:
    return sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_version_and_a_hash(name: str) -> None:
    entries = re.split(r"\n(?=\S)", lock(name).strip())
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert packages
    for entry in packages:
        assert re.match(r"[\w.-]+==[\w.+]+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", ["build", "cpu", "cuda"])
def test_the_locks_are_of_the_pinned_versions(name: str) -> None:
    locked = {package: Version(version).public for package, version in pins(lock(name)).items()}
    known = {package: version for package, version in locked.items() if package in CONSTRAINTS}
    assert known == {package: CONSTRAINTS[package] for package in known}, "run `make lock`"
    if name == "cpu":
        assert known.keys() == locked.keys(), "add the pins to constraints.txt"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_locks_hold_all_that_the_package_asks_for(name: str) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert asked <= pins(lock(name)).keys(), "run `make lock`"


def test_the_cpu_image_gets_no_cuda_package_and_no_test_tool() -> None:
    packages = pins(lock("cpu"))
    assert not [package for package in packages if package.startswith("nvidia")]
    assert not packages.keys() & {"pytest", "ruff", "mypy", "transformers", "triton"}


def test_no_pin_is_known_to_be_vulnerable() -> None:
    for package, floor in FLOORS.items():
        assert Version(CONSTRAINTS[package]) >= Version(floor), package
    assert "python-multipart" not in CONSTRAINTS, "nothing here takes forms"


def test_the_dockerfile_installs_nothing_from_an_index_without_a_hash() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip[^&\n]*? install ([^&\n]*)", text)
    assert len(installs) == 5
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-index" in arguments, arguments


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_workflows_ask_for_no_right_that_a_job_does_not_name(path: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "write-all" not in str(job.get("permissions"))
        for step in job.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_workflows_run_make_targets_that_exist(path: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    used = re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8").split("\njobs:")[1])
    assert set(used) <= set(targets)
