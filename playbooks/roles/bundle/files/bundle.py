"""Packs everything that a host needs into two files: the code with its wheel, and all wheels that it depends on.

Owns: building the wheel, the wheelhouse for a host's Python, and reproducible tar files.
Two files, because the dependencies are large and seldom change: a host that already has a release made from them needs
only the code.
Leaves to others: the release on a host (role release), settings (mesh.toml, rendered for each host).

Run by Ansible on the control machine; it prints one JSON object. Needs pip, and a package index when something is not
built yet. A second run with the same sources builds nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

#: Versions of glibc that Debian 12 and later support; wheels for older systems run there, too.
GLIBC: Final = (28, 27, 26, 24, 17, 12, 5)
LEFT_OUT: Final = frozenset({"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
#: The number of tar files of each kind, and of wheels of the project, to keep in the build directory.
KEPT: Final = 3
#: Files that were used within this time are not removed: another run may still be copying them to hosts.
IN_USE_S: Final = 3600.0


class BundleError(Exception):
    """The bundle cannot be built; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build one file that holds everything a host needs.")
    parser.add_argument("--project", type=Path, required=True, help="where pyproject.toml stands")
    parser.add_argument("--build", type=Path, required=True, help="where what is built is kept")
    parser.add_argument("--code", nargs="*", default=[], help="directories and files beside the wheel")
    parser.add_argument("--extras", default="", help="of the project, separated by commas")
    parser.add_argument("--constraints", type=Path, help="a pip constraints file")
    parser.add_argument("--python", required=True, help="the hosts' Python, like 3.11")
    parser.add_argument("--machine", required=True, help="the hosts' processor, like x86_64")
    asked = parser.parse_args()
    try:
        sys.stdout.write(json.dumps(bundle(asked)) + "\n")
    except BundleError as exc:
        sys.stderr.write(f"bundle: {exc}\n")
        return 1
    return 0


def bundle(asked: argparse.Namespace) -> dict[str, Any]:
    """Build missing files; returns their paths, and whether anything was built."""
    project = asked.project.resolve()
    try:
        described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as exc:
        raise BundleError(
            f"{project}/pyproject.toml has no [project]: {exc}; set mesh_project to its directory"
        ) from exc
    for name in asked.code:
        if not (project / name).exists():
            raise BundleError(f"{project / name} does not exist; mesh_code lists files to deploy beside the wheel")
    asked.build.mkdir(parents=True, exist_ok=True)
    with alone(asked.build):
        return _build(asked, project, described)


@contextmanager
def alone(build: Path) -> Iterator[None]:
    """Lock the build directory: another run waits, and then finds its files built. The lock ends with the process."""
    with open(build / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(asked: argparse.Namespace, project: Path, described: dict[str, Any]) -> dict[str, Any]:
    wheel, wheel_is_new = _wheel(project, asked.build)
    wheels, wheels_are_new = _wheelhouse(asked, described, wheel)
    pip = next(wheels.glob("pip-*.whl"))
    depends = [("wheels/" + path.name, path) for path in sorted(wheels.iterdir()) if path != pip]
    code = [("wheels/" + path.name, path) for path in (wheel, pip)]
    code += [(str(path.relative_to(project)), path) for name in asked.code for path in _files(project / name)]
    depends_on, depends_are_new = _tar(asked.build, "wheels", depends)
    holds, code_is_new = _tar(asked.build, "code", code)
    return {
        "wheels": depends_on,
        "code": holds,
        # Not from pyproject.toml, which may leave the version to the build backend. NAME-VERSION-….whl
        "version": wheel.name.split("-")[1],
        "requirement": described["name"] + (f"[{asked.extras}]" if asked.extras else ""),
        "wheel": wheel.name,
        "pip": pip.name,
        "changed": wheel_is_new or wheels_are_new or depends_are_new or code_is_new,
    }


def _wheel(project: Path, build: Path) -> tuple[Path, bool]:
    """The project's own wheel, built when its sources have changed since the last time."""
    sources = [("pyproject.toml", project / "pyproject.toml")]
    for name in _packages(project):
        sources += [(str(path.relative_to(project)), path) for path in _files(project / name)]
    directory = build / f"own-{_digest_of(sources)}"
    fresh = not directory.exists()
    if fresh:
        _into(directory, ["wheel", "--no-deps", str(project)])
    os.utime(directory)
    for old in _old(build.glob("own-*")):
        shutil.rmtree(old)
    return next(directory.glob("*.whl")), fresh


def _packages(project: Path) -> list[str]:
    tool = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    wheel = tool.get("hatch", {}).get("build", {}).get("targets", {}).get("wheel", {})
    named = wheel.get("packages")
    if named:
        return list(named)
    return [str(path.parent.relative_to(project)) for path in project.glob("*/__init__.py")]


def _wheelhouse(asked: argparse.Namespace, described: dict[str, Any], wheel: Path) -> tuple[Path, bool]:
    """All wheels that it depends on, and pip itself, for the hosts' Python."""
    extras = described.get("optional-dependencies", {})
    for name in filter(None, asked.extras.split(",")):
        if name not in extras:
            known = ", ".join(extras) or "none"
            raise BundleError(f"{described['name']} has no extra {name!r} (mesh_extras); known are {known}")
    wanted = list(described.get("dependencies", []))
    wanted += [each for name in filter(None, asked.extras.split(",")) for each in extras[name]]
    constraints = asked.constraints.read_text(encoding="utf-8") if asked.constraints else ""
    told = json.dumps([sorted(wanted), constraints, asked.python, asked.machine])
    directory = asked.build / f"wheels-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if directory.exists():
        return directory, False
    words = [*wanted, "pip"]
    if asked.constraints:
        words += ["--constraint", str(asked.constraints)]
    if asked.python == platform.python_version().rpartition(".")[0] and asked.machine == platform.machine():
        _into(directory, ["wheel", *words])
    else:
        platforms = [f"manylinux_2_{minor}_{asked.machine}" for minor in GLIBC] + [f"manylinux2014_{asked.machine}"]
        chosen = [word for each in platforms for word in ("--platform", each)]
        target = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", asked.python, *chosen]
        _into(directory, ["download", *target, *words])
    return directory, True


def _into(directory: Path, words: list[str]) -> None:
    """Fill a directory with pip, completely or not at all."""
    verb, *rest = words
    option = "--wheel-dir" if verb == "wheel" else "--dest"
    new = tempfile.mkdtemp(dir=directory.parent, prefix=".new-")
    try:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", verb, option, new, *rest]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BundleError(f"pip {verb} failed on the control machine: {reason(done.stderr)}")
        os.chmod(new, 0o755)
        os.rename(new, directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def reason(said: str) -> str:
    """Why pip failed: its own errors first, then the output before them."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line for line in lines if line.lstrip(" ×╰─>│").lower().startswith("error")]
    # "error: subprocess-exited-with-error" and similar lines do not contain the reason.
    telling = [line.strip() for line in errors if "subprocess-exited" not in line and "metadata-generation" not in line]
    first = list(dict.fromkeys(telling)) or lines[-1:]
    rest = "\n".join(lines)[-2000:].strip()
    return "\n".join([*first[:3], "the end of its output:", rest]) if rest not in first else rest


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for each in sorted(path.rglob("*")):
        if each.is_file() and not LEFT_OUT & set(each.parts) and each.suffix != ".pyc":
            yield each


def _tar(build: Path, kind: str, entries: list[tuple[str, Path]]) -> tuple[dict[str, str], bool]:
    """A tar file of these entries: its path and digest, and whether it had to be written."""
    digest = _digest_of(entries)
    target = build / f"{kind}-{digest}.tar"
    fresh = not target.exists()
    if fresh:
        _write(target, entries)
    _forget_old(build, kind, target)
    return {"path": str(target.resolve()), "digest": digest}, fresh


def _digest_of(entries: Iterable[tuple[str, Path]]) -> str:
    whole = hashlib.sha256()
    for name, path in sorted(entries):
        mode = os.stat(path).st_mode & 0o111
        whole.update(f"{name}\0{bool(mode)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _write(target: Path, entries: list[tuple[str, Path]]) -> None:
    new = target.with_suffix(".new")
    with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(entries):
            content = path.read_bytes()
            about = tarfile.TarInfo(name)
            about.size = len(content)
            about.mode = 0o755 if os.stat(path).st_mode & 0o111 else 0o644
            tar.addfile(about, io.BytesIO(content))
    os.replace(new, target)


def _forget_old(build: Path, kind: str, current: Path) -> None:
    os.utime(current)
    for old in _old(build.glob(f"{kind}-*.tar")):
        old.unlink()


def _old(paths: Iterable[Path]) -> list[Path]:
    """Files that are neither among the last used ones nor in use, for example by a run that copies them to hosts."""
    used = sorted(((path.stat().st_mtime, path) for path in paths), reverse=True)
    return [path for at, path in used[KEPT:] if time.time() - at > IN_USE_S]


if __name__ == "__main__":
    sys.exit(main())
