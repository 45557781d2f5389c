"""What the README says is run, and what it names exists."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Context
from PIL import Image

from stylequeue_shared.cli import main
from stylequeue_shared.job_settings import PRESETS, JobSettings
from stylequeue_shared.settings import PREFIX, Settings
from stylequeue_web.samples import sample_bytes, samples
from tests.system.test_up import Up

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
# Block i may use the variables that the blocks before it set.
BASH = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CURL_BLOCKS = [block for block in BASH if "curl" in block]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    up = Up(tmp_path / "home", standing_in=(), STYLEQUEUE_THREADS="1").ready()
    yield up.address
    assert up.end() == 0, up.said


@pytest.fixture
def folder_with_pictures(tmp_path: Path) -> Path:
    for kind in ("content", "style"):
        name = next(sample.name for sample in samples() if sample.kind == kind)
        original = tmp_path / "original"
        original.write_bytes(sample_bytes(name)[0])
        with Image.open(original) as image:
            image.convert("RGB").save(tmp_path / f"{kind}.jpg")
    return tmp_path


def test_the_curl_commands_submit_watch_and_download(
    address: str, folder_with_pictures: Path
) -> None:
    assert shutil.which("curl"), (
        "install the package 'curl': the README is tested by it"
    )
    assert len(CURL_BLOCKS) == 2
    script = "set -eu\n" + "\n".join(CURL_BLOCKS)
    # The picture is made smaller, and the address is the test's; the rest is as said.
    script = script.replace("http://127.0.0.1:8000", address)
    large, small = '"image_size": 256, "steps": 100', '"image_size": 64, "steps": 5'
    assert large in script
    done = subprocess.run(
        ["bash", "-c", script.replace(large, small)],
        cwd=folder_with_pictures,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert '"openapi":"3.1' in done.stdout.replace(" ", "")
    with Image.open(folder_with_pictures / "result.png") as result:
        assert max(result.size) == 64
        assert "settings" in result.info


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_setting_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    commands = set(main.list_commands(Context(main)))
    named = set(re.findall(r"`stylequeue ([a-z]+)[` ]", text))
    assert named <= commands
    variables = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert set(re.findall(r"STYLEQUEUE_[A-Z_]+", text)) <= variables
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert set(re.findall(r"^make ([a-z]+)$|`make ([a-z]+)`", text)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.search("@@|TODO|FIXME|XXX", page.read_text())


def test_the_pages_link_only_to_files_that_are_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_tables_list_every_setting_with_its_default() -> None:
    for name, field in JobSettings.model_fields.items():
        assert f"| `{name}` |" in README, f"{name} is missing"
        if isinstance(field.default, int | float) and not isinstance(
            field.default, bool
        ):
            row = next(line for line in README.splitlines() if f"| `{name}` |" in line)
            assert f"{field.default:g}" in row
    for preset in PRESETS:
        assert f"`{preset}`" in README
    for name in Settings.model_fields:
        assert f"| `{PREFIX}{name.upper()}` |" in README, f"{name} is missing"
