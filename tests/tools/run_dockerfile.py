"""Run the Dockerfile's steps, command and health check where no Docker daemon can run.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm ROOT
    sudo python tests/tools/run_dockerfile.py ROOT WORK --models runs [--bind PATH ...]

Each stage starts from ROOT, which stands for the image after FROM, in an overlay of its own below
WORK. RUN gets nothing of this machine's environment but PIP_ variables, and of its files nothing
but what `--bind` names. COPY takes what .dockerignore leaves.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parents[2]


@dataclass
class Stage:
    """A stage of the build: the folder that is its /, and what the steps so far have set."""

    root: Path
    env: dict[str, str]
    folder: str = "/"
    user: str = "0"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def chroot(self, command: list[str]) -> list[str]:
        """The command as its user in its folder, without this machine's environment."""
        env = [f"{name}={value}" for name, value in self.env.items()]
        inner = f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"
        user = [f"--userspec={self.user}:{self.user}"]
        return ["chroot", *user, str(self.root), "/usr/bin/env", "-i", *env, "sh", "-c", inner]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and argument of each instruction, comments left out and lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (name, rest) for name, _, rest in (line.partition(" ") for line in text.split("\n")) if name
    ]


def mounted(root: Path, work: Path, name: str, binds: list[Path]) -> Path:
    """An overlay over `root`, with /proc, /dev and the files that are lent."""
    upper, spare, at = (work / name / part for part in ("upper", "spare", "root"))
    for folder in (upper, spare, at):
        folder.mkdir(parents=True)
    run(["mount", "-t", "overlay", "overlay", "-o",
         f"lowerdir={root},upperdir={upper},workdir={spare}", str(at)])  # fmt: skip
    for path in (Path("/proc"), Path("/dev"), Path("/etc/resolv.conf"), *binds):
        inside = at / path.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir(exist_ok=True) if path.is_dir() else inside.touch()
        run(["mount", "--rbind", str(path), str(inside)])
    return at


def context(work: Path) -> Path:
    """What the build may copy: the tracked files that .dockerignore lets in."""
    allowed = [line[1:] for line in (HERE / ".dockerignore").read_text().split() if line[0] == "!"]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=HERE, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    for name in filter(None, tracked):
        if any(fnmatch.fnmatch(name, one) or name.startswith(f"{one}/") for one in allowed):
            target = work / "context" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, target)
    return work / "context"


def run(command: list[str]) -> None:
    """Run a command; its failure ends the script."""
    subprocess.run(command, check=True)


def step(stages: dict[str, Stage], stage: Stage, name: str, rest: str, files: Path) -> None:
    """One instruction."""
    if name == "RUN":
        run(stage.chroot(["bash", "-o", "pipefail", "-c", rest]))
    elif name == "ENV":
        for entry in shlex.split(rest):
            key, _, value = entry.partition("=")
            stage.env[key] = value.replace(f"${key}", stage.env.get(key, ""))
    elif name == "ARG":
        key, _, value = rest.partition("=")
        stage.env[key] = os.environ.get(key, shlex.split(value)[0] if value else "")
    elif name == "WORKDIR":
        stage.folder = rest
        (stage.root / rest[1:]).mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        stage.user = rest
    elif name == "COPY":
        *sources, target = rest.split()
        origin = files
        if sources[0].startswith("--from="):
            origin = stages[sources.pop(0).removeprefix("--from=")].root
        inside = stage.root / os.path.normpath(f"{stage.folder}/{target}").lstrip("/")
        if target.startswith("/"):
            inside = stage.root / target[1:]
        for source in sources:
            found = origin / source.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            into = [str(found) + "/.", str(inside)] if found.is_dir() else [str(found), str(inside)]
            run(["cp", "-a", *into])
    elif name == "CMD":
        stage.command = json.loads(rest)
    elif name == "HEALTHCHECK":
        stage.health = json.loads(rest[rest.index("[") :])


def main() -> None:
    """Build, start, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--bind", type=Path, action="append", default=[])
    given = parser.parse_args()
    if "LLMKIT_UNSHARED" not in os.environ:  # mounts end with this process
        os.environ["LLMKIT_UNSHARED"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    files = context(given.work)
    lent = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    stages: dict[str, Stage] = {}
    stage = None
    for name, rest in instructions(HERE / "Dockerfile"):
        print(f"== {name} {rest}", flush=True)
        if name == "FROM":
            title = rest.partition(" AS ")[2] or "final"
            root = mounted(given.root, given.work, title, [path.absolute() for path in given.bind])
            path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
            stage = stages[title] = Stage(root, {"PATH": path, **lent})
        elif stage is not None:
            step(stages, stage, name, rest, files)
    assert stage is not None
    stage.env = {name: value for name, value in stage.env.items() if name not in lent}
    stage.env["HOME"] = "/home/llmkit"
    models = stage.root / "llmkit" / "runs"
    models.mkdir(parents=True, exist_ok=True)
    run(["mount", "--bind", str(given.models.absolute()), str(models)])
    run(["du", "-sh", str(given.work / "final" / "upper")])
    server = subprocess.Popen(stage.chroot(stage.command))
    try:
        for _ in range(60):
            time.sleep(1)
            if (
                subprocess.run(stage.chroot(stage.health), stderr=subprocess.DEVNULL).returncode
                == 0
            ):
                print("healthy")
                break
        else:
            sys.exit("the health check never passed")
        print("g++ in it:", (stage.root / "usr/bin/g++").exists())
    finally:
        server.terminate()
        server.wait()


main()
