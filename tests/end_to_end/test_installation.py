"""The package is whole wherever Python is started, and from the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETTINGS = PYPROJECT["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETTINGS["package-dir"].items()}
IMPORT_ALL = "import llmkit, llmkit.export, llmkit.quant, llmkit.modelfiles; print(llmkit.__file__)"


def packages_on_disk() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for file in folder.rglob("__init__.py"):
            found.add(".".join((package, *file.parent.relative_to(folder).parts)))
    return found


def test_every_folder_of_modules_is_installed() -> None:
    assert set(SETTINGS["packages"]) == packages_on_disk()
    modules = {file.parent for folder in FOLDERS.values() for file in folder.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in modules)


@pytest.mark.slow
def test_a_clone_is_imported_from_its_root() -> None:
    code = f"{IMPORT_ALL}; import llmkit.api"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()) == ROOT / "llmkit" / "__init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        shutil.copytree(folder, source / folder.name)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([sys.executable, *command, str(out), str(source)], check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_is_whole_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = next((tmp_path / "venv").glob("[bS]*/python*"))
    site = next((tmp_path / "venv").glob("[Ll]ib/**/site-packages"))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    # The dependencies are this environment's; what it says of an editable llmkit counts only here.
    dependencies = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    run = subprocess.run(
        [python, "-P", "-c", f"{IMPORT_ALL}; import llmkit.api"],
        env={**os.environ, "PYTHONPATH": dependencies},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert site in Path(run.stdout.strip()).parents
    there = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert there == {"llmkit", "bin"}  # nothing named export or quant; --target puts scripts in bin


@pytest.mark.slow
def test_the_wheel_can_be_published(wheel: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
