"""`stylequeue render` as a person runs it: real processes, real signals."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import pytest
import tifffile
from PIL import Image

from tests.shared.pictures import colourful, saved

TINY = [
    "--image-size",
    "64",
    "--content-layers",
    "conv1_1",
    "--style-layers",
    "conv1_1,conv1_2",
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    (tmp_path / "photo.jpg").write_bytes(saved(colourful(96, 64), "JPEG"))
    (tmp_path / "style.png").write_bytes(saved(colourful(64, 80), "PNG"))

    def run(*options: str, styles: int = 1) -> "subprocess.Popen[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith("STYLEQUEUE_")}
        command = [sys.executable, "-P", "-m", "stylequeue_shared.cli", "render"]
        return subprocess.Popen(
            [*command, "photo.jpg", *["style.png"] * styles, *TINY, *options],
            cwd=tmp_path,
            # Nothing of an installation is made, or needed.
            env=clean | {"HOME": str(tmp_path / "home")},
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_a_picture_is_painted_into_the_file_with_its_settings(
    start: Start, tmp_path: Path
) -> None:
    process = start("-o", "out.png", "--steps", "6", "--seed", "5", "--save-every", "2")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (64, 43)
        settings = json.loads(picture.info["settings"])
        last = picture.tobytes()
    assert (settings["steps"], settings["seed"]) == (6, 5)
    assert settings["style_layers"] == ["conv1_1", "conv1_2"]
    assert "6/6" in said
    assert re.search(r"about \d+ (s|min) and \d\.\d GB", said)
    made = {path.name for path in tmp_path.iterdir()} - {"photo.jpg", "style.png"}
    assert made == {"out.png", *(f"out-00000{step}.png" for step in (2, 4, 6))}
    with Image.open(tmp_path / "out-000006.png") as same:
        assert same.tobytes() == last


def test_several_styles_are_blended_and_a_jpeg_is_written_on_request(
    start: Start, tmp_path: Path
) -> None:
    options = ("-o", "out.jpg", "--steps", "2", "--style-blend", "1,0.5")
    process = start(*options, styles=2)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    with Image.open(tmp_path / "out.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (64, 43))


@pytest.mark.parametrize(
    ("name", "result_format"), [("out.png", "png16"), ("out.TIFF", "tiff16")]
)
def test_sixteen_bits_are_written_on_request(
    start: Start, tmp_path: Path, name: str, result_format: str
) -> None:
    options = ("--steps", "2", "--save-every", "1", "--result-format", result_format)
    process = start("-o", name, *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    for made in (name, name.replace("out", "out-000001")):
        data = (tmp_path / made).read_bytes()
        png = result_format == "png16"
        found = (
            imagecodecs.png_decode(data) if png else tifffile.imread(io.BytesIO(data))
        )
        assert (found.dtype, found.shape) == ("uint16", (43, 64, 3))
        # More than eight bits repeated.
        assert (found % 257 != 0).any()


def test_the_alpha_of_the_content_is_kept_on_request(
    start: Start, tmp_path: Path
) -> None:
    clear = colourful(96, 64)
    clear.putalpha(77)
    (tmp_path / "photo.jpg").write_bytes(saved(clear, "PNG"))
    process = start("-o", "out.png", "--steps", "1", "--keep-alpha", "true")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.getchannel("A").getextrema() == (77, 77)


def test_ctrl_c_keeps_the_newest_picture(start: Start, tmp_path: Path) -> None:
    process = start(
        *("-o", "out.png", "--steps", "100000", "--snapshot-every", "1000"),
        *("--save-every", "5"),
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "out-000005.png").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    assert not (tmp_path / "out.png").exists()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped after step" in said
    assert "Traceback" not in said
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (64, 43)
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "out.gif"), "output: found 'out.gif'"),
        (
            ("-o", "out.jpg", "--keep-alpha", "true"),
            "found 'out.jpg'; with result_format png and keep_alpha its name must end "
            "with .png",
        ),
        (("-o", "out.tif"), "result_format png its name must end with .png, .jpg"),
        (("-o", "out.jpg", "--result-format", "png16"), "must end with .png"),
        (("-o", "out.png", "--result-format", "tiff16"), "with .tif, .tiff"),
        (("-o", "out.png", "--result-format", "jpeg"), 'result_format: found "jpeg"'),
        (("-o", "out.png", "--keep-alpha", "yes"), 'keep_alpha: found "yes"'),
        (("-o", "nowhere/out.png"), "output: nowhere/out.png cannot be written"),
        (("-o", "out.png", "--steps", "many"), 'steps: found "many"'),
        (("-o", "out.png", "--style-layers", "conv9_1"), "style_layers: found"),
        (("-o", "out.png", "--style-blend", "1,2"), "style_blend: 2 weights"),
        (("-o", "out.png", "--pooling", "none"), 'pooling: found "none"'),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_painted(
    start: Start, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    process = start(*options)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"photo.jpg", "style.png"}


def test_a_file_that_is_no_picture_is_refused_by_name(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "style.png").write_text("not a picture")
    process = start("-o", "out.png")
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.startswith("stylequeue: style: ")
