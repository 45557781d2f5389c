import errno
import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stylequeue_shared import decoder_process, decoding, images
from stylequeue_shared.decoding import Inspected
from stylequeue_shared.errors import (
    Busy,
    DiskFull,
    InvalidPicture,
    MachineError,
    OurError,
)
from stylequeue_shared.pictures.formats import ACCEPTED
from tests.shared.pictures import colourful, exif, png, saved, swapped_profile

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(saved(colourful(), "PNG"))
    return path


def inspect(path: Path, data: bytes | None = None, **limits: int) -> Inspected:
    if data is not None:
        path.write_bytes(data)
    limits = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS} | limits
    return decoding.inspect(path, field="content", **limits)


def render(path: Path, *, size: int | None, format: Literal["png", "jpeg"]) -> bytes:
    target = path.with_name("rendition")
    decoding.render(path, target, size=size, format=format)
    return target.read_bytes()


def refusal(path: Path, data: bytes | None = None, **limits: int) -> str:
    """Return why the picture is refused, having checked the form of the answer."""
    with pytest.raises(InvalidPicture) as refused:
        inspect(path, data, **limits)
    assert refused.value.field == "content"
    assert refused.value.message.startswith("content: found ")
    assert "; allowed " in refused.value.message
    return refused.value.message


def child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the child run this, once it has said that it is about to decode."""
    code = (
        "import os, signal, subprocess, sys, time\nprint('ready', flush=True)\n" + code
    )
    monkeypatch.setattr(decoding, "COMMAND", [sys.executable, "-I", "-c", code])


@pytest.mark.parametrize("format", ACCEPTED)
def test_every_accepted_format_is_inspected(upload: Path, format: str) -> None:
    data = saved(colourful(), format)
    assert inspect(upload, data) == Inspected(
        sha256=hashlib.sha256(data).hexdigest(),
        media_type=f"image/{format.lower()}",
        width=48,
        height=32,
        bytes=len(data),
    )


def test_width_and_height_are_those_of_the_upright_picture(upload: Path) -> None:
    found = inspect(upload, saved(colourful(), "JPEG", exif=exif(6)))
    assert (found.width, found.height) == (32, 48)


def test_the_name_of_the_file_decides_nothing(tmp_path: Path) -> None:
    assert inspect(tmp_path / "-a b'\".svg", saved(colourful(), "BMP")).width == 48
    assert "a text" in refusal(tmp_path / "a.png", b"no picture at all")


@pytest.mark.parametrize("format", ["png", "jpeg"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_rendition_tells_nothing_of_its_maker(
    upload: Path, source: str, format: Literal["png", "jpeg"]
) -> None:
    options = {"comment": b"SECRET COMMENT"} if source == "JPEG" else {}
    data = saved(
        colourful(), source, exif=exif(6), icc_profile=swapped_profile(), **options
    )
    assert b"SECRET PLACE" in data  # or the test would show nothing
    upload.write_bytes(data)
    rendition = render(upload, size=None, format=format)
    for trace in (b"SECRET", b"Exif", b"eXIf", b"ICC", b"iCCP", b"http"):
        assert trace not in rendition
    with Image.open(BytesIO(rendition)) as image:
        assert image.format == format.upper()
        assert image.size == (32, 48)
        assert not image.getexif()


def test_a_rendition_has_the_pixels_of_the_picture(upload: Path) -> None:
    full = render(upload, size=None, format="png")
    with Image.open(BytesIO(full)) as image:
        assert image.tobytes() == colourful().tobytes()
    # The same bytes however it came about, so that they may be cached.
    assert render(upload, size=480, format="png") == full
    with Image.open(BytesIO(render(upload, size=12, format="jpeg"))) as image:
        assert image.size == (12, 8)


def test_rendering_what_is_no_picture_is_refused(upload: Path) -> None:
    upload.write_text("no picture")
    with pytest.raises(InvalidPicture, match="found a text"):
        render(upload, size=None, format="png")


def test_a_file_of_too_many_bytes_is_refused(upload: Path) -> None:
    message = refusal(upload, bytes(20_000_001))
    assert message == "content: found a file of 20 MB; allowed are at most 20 MB"
    assert inspect(upload, saved(colourful(), "BMP"), max_bytes=4662).bytes == 4662
    assert "at most 0.00466 MB" in refusal(upload, max_bytes=4661)


def test_a_picture_of_too_many_pixels_is_refused(upload: Path) -> None:
    assert inspect(upload, max_pixels=48 * 32).width == 48
    message = refusal(upload, max_pixels=1000)
    assert "48 x 32 pixels; allowed are at most 0.001 megapixels" in message


def test_an_empty_file_is_refused(upload: Path) -> None:
    assert "an empty file" in refusal(upload, b"")


def test_a_file_cut_short_is_refused(upload: Path) -> None:
    data = saved(Image.effect_noise((96, 64), 80), "JPEG")
    assert "damaged or cut short" in refusal(upload, data[: len(data) // 2])


def test_a_thin_picture_is_refused(upload: Path) -> None:
    assert "32 times" in refusal(upload, saved(Image.new("L", (1000, 3)), "PNG"))


def test_a_picture_that_is_a_web_page_too_is_read_as_a_picture(upload: Path) -> None:
    script = b"<html><script>alert(1)</script></html>"
    assert inspect(upload, saved(colourful(), "PNG") + script).media_type == "image/png"
    assert script not in render(upload, size=None, format="png")
    assert "a web page" in refusal(upload, script + saved(colourful(), "PNG"))


def patched(data: bytes, place: int, *values: int, order: str = "<H") -> bytes:
    new = b"".join(struct.pack(order, value) for value in values)
    return data[:place] + new + data[place + len(new) :]


def huge(format: str) -> bytes:
    """Return a small file whose header promises more than four gigapixels or so."""
    small = saved(colourful(), format)
    if format == "PNG":
        return png((70_000, 60_000), 8, 2, bytes(300))
    if format == "GIF":
        return patched(small, 6, 65_535, 65_535)
    if format == "BMP":
        return patched(small, 18, 70_000, 60_000, order="<i")
    if format == "JPEG":
        return patched(small, small.index(b"\xff\xc0") + 5, 65_000, 65_000, order=">H")
    if format == "TIFF":
        for tag in (256, 257):
            place = small.index(struct.pack("<HHI", tag, 4, 1)) + 8
            small = patched(small, place, 65_000, order="<I")
        return small
    if format == "WEBP":  # at most 16384 a side
        return patched(small, small.index(b"\x9d\x01\x2a") + 3, 16_383, 16_383)
    place = small.index(b"ispe") + 8
    return patched(small, place, 65_000, 65_000, order=">I")


@pytest.mark.parametrize("format", ACCEPTED)
def test_a_bomb_is_refused_at_once(upload: Path, format: str) -> None:
    start = time.monotonic()
    message = refusal(upload, huge(format))
    assert time.monotonic() - start < 5
    if format != "AVIF":  # its decoder sees the lie itself
        assert "pixels; allowed are at most 50 megapixels" in message


@pytest.mark.parametrize(
    "data",
    [
        png((0, 5), 8, 2, b""),
        png((5, 0), 8, 2, b""),
        patched(saved(colourful(), "GIF"), 6, 0, 0),
        patched(saved(colourful(), "BMP"), 18, 0, 0, order="<i"),
        patched(saved(colourful(), "JPEG"), 163, 0, 0, order=">H"),
    ],
)
def test_a_picture_without_area_is_refused_or_has_another_frame(
    upload: Path, data: bytes
) -> None:
    with suppress(InvalidPicture):
        found = inspect(upload, data)
        assert found.width * found.height > 0  # a GIF grows with its frames


def test_a_bomb_of_compressed_text_is_not_unpacked(upload: Path) -> None:
    text = b"a\0\0" + zlib.compress(bytes(100_000_000))
    bomb = png((4, 4), 8, 0, bytes(16), *[(b"zTXt", text)] * 9)
    assert inspect(upload, bomb).width == 4


def large(format: str) -> bytes:
    """Return 50 megapixels of one colour: quickly made, as much memory to decode."""
    options = {
        "JPEG": {"progressive": True, "subsampling": "4:4:4", "exif": exif(6)},
        "PNG": {"compress_level": 1, "icc_profile": swapped_profile()},
        "WEBP": {"lossless": True, "method": 0, "quality": 0, "exif": exif(6)},
        "AVIF": {"speed": 10, "exif": exif(6)},
    }[format]
    colour = (200, 100, 50) if format == "JPEG" else (200, 100, 50, 128)
    image = Image.new("RGBA"[: len(colour)], (8160, 6120), colour)
    return saved(image, format, **options)


# The ones that need the most memory or time.
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_fifty_megapixels_fit_into_the_limits(upload: Path, format: str) -> None:
    found = inspect(upload, large(format), max_bytes=10**9)
    assert found.width * found.height == 8160 * 6120


@pytest.mark.parametrize(
    "code",
    [
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.kill(os.getpid(), signal.SIGBUS)",
        "sys.exit(3)",
        "raise RuntimeError",
        "",
        "print('{')\nsys.exit(1)",
    ],
)
def test_a_codec_that_crashes_costs_one_refusal(
    upload: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    with monkeypatch.context() as patch:
        child(patch, code)
        assert "crashes its decoder" in refusal(upload)
    assert inspect(upload).width == 48


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_child_killed_from_outside_is_the_machines_fault(
    upload: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    child(
        monkeypatch,
        f"signal.signal(signal.{name}, signal.SIG_DFL) if {name!r} != 'SIGKILL' else 0"
        f"\nos.kill(os.getpid(), signal.{name})",
    )
    with pytest.raises(MachineError, match=rf"decoder was killed \({name}\)"):
        inspect(upload)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_child_that_cannot_be_started_now_is_the_machines_fault(
    upload: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*given: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(MachineError, match=r"^The server .*; try again later\.$"):
        inspect(upload)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is full")
def test_a_full_temporary_folder_is_the_machines_fault(upload: Path) -> None:
    with pytest.raises(DiskFull, match="temporary folder is full"):
        decoding.render(upload, Path("/dev/full"), size=None, format="png")


def test_a_decoder_that_waits_for_ever_is_ended_with_all_it_started(
    upload: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    child(
        monkeypatch,
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}')\n"
        "time.sleep(600)",
    )
    monkeypatch.setattr(decoding, "BASE_SECONDS", 1.0)
    monkeypatch.setattr(decoding, "SECONDS_PER_PIXEL", 0.0)
    # It has not used the time that its picture may cost: something else has.
    with pytest.raises(Busy, match="too busy to decode"):
        inspect(upload)
    deadline = time.monotonic() + 20
    while any(map(is_running, map(int, pids.read_text().split()))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_decoder_that_computes_without_end_is_ended_by_its_own_limit(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(
        monkeypatch,
        "from stylequeue_shared import decoding_child\n"
        "decoding_child.limit(10**9, 1)\n"
        "while True: pass",
    )
    start = time.monotonic()
    assert "too long to decode" in refusal(upload)
    assert time.monotonic() - start < 30


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps no such limit")
def test_a_picture_that_needs_more_memory_than_allowed_is_refused(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(Image.new("RGB", (8000, 6000)), "PNG")
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "BASE_BYTES", 200_000_000)
        patch.setattr(decoding, "BYTES_PER_PIXEL", 0)
        message = refusal(upload, data)
    assert "too much memory; allowed are 200 MB" in message
    assert inspect(upload).width == 8000


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps no such limit")
def test_the_child_limits_itself_before_it_knows_the_decoders() -> None:
    code = """
import os, resource, sys
from stylequeue_shared import decoding_child
assert not any(name.startswith(("PIL", "numpy")) for name in sys.modules)
decoding_child.limit(10**9, 5)
for kind, value in dict(AS=10**9, CPU=5, FSIZE=0, CORE=0, NPROC=0).items():
    assert resource.getrlimit(getattr(resource, "RLIMIT_" + kind))[0] == value
try:
    bytearray(2 * 10**9)
except MemoryError:
    print("no memory")
"""
    output = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "no memory\n"


def test_a_decoder_that_does_not_start_is_not_the_pictures_fault(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-I", "-c", "import no_such_module"]
    monkeypatch.setattr(decoding, "COMMAND", command)
    with pytest.raises(OurError, match=r"does not start.*no_such_module"):
        inspect(upload)


def test_the_child_gets_no_secrets_and_none_of_our_files(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STYLEQUEUE_SECRET_KEY", "hush")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("_STYLEQUEUE_UP", "home")
    child(
        monkeypatch,
        "seen = f'{os.environ} {os.getcwd()}'\n"
        "if sys.platform == 'linux': seen += str(os.listdir('/proc/self/fd'))\n"
        "import json; print(json.dumps({'invalid': seen}))",
    )
    with upload.open() as file:
        os.set_inheritable(file.fileno(), True)
        with pytest.raises(InvalidPicture) as refused:
            inspect(upload)
    seen = refused.value.message
    assert "hush" not in seen
    assert "elsewhere" not in seen
    assert "_STYLEQUEUE_UP" in seen  # by which `stylequeue up` finds its own
    if sys.platform == "linux":
        assert "/['0', '1', '2', '3']" in seen


def test_no_more_than_two_decode_at_once(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, "time.sleep(0.4)\nos.abort()")
    start = time.monotonic()
    threads = [threading.Thread(target=refusal, args=(upload,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start > 0.8


def test_nobody_waits_for_a_decoder_without_end(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_process, "SLOT_SECONDS", 0.05)
    monkeypatch.setattr(decoder_process, "_slots", threading.BoundedSemaphore(1))
    with decoder_process._slots, pytest.raises(Busy) as busy:
        inspect(upload)
    assert 0 < busy.value.retry_after < 30
    assert inspect(upload).width == 48


def test_decoders_let_web_servers_and_workers_go_first(
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import json, os, sys\nfrom stylequeue_shared import decoding_child\n"
        "decoding_child.handle = lambda request: {'invalid': str(os.nice(0))}\n"
        "decoding_child.main(json.loads(sys.argv[1]), sys.stdout.buffer)"
    )
    monkeypatch.setattr(decoding, "COMMAND", [sys.executable, "-I", "-c", code])
    with pytest.raises(InvalidPicture) as answered:
        inspect(upload)
    assert answered.value.message == f"content: {os.nice(0) + 5}"


@pytest.mark.parametrize("keep_alpha", [False, True])
def test_a_decoded_picture_is_the_one_that_images_reads(
    upload: Path, keep_alpha: bool
) -> None:
    clear = colourful(301, 333)
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    upload.write_bytes(saved(clear, "PNG"))
    got = decoding.decode(upload, field="content", keep_alpha=keep_alpha)
    right = images.decode(upload, keep_alpha=keep_alpha)
    assert (got.mode, got.size) == (right.mode, right.size)
    assert got.tobytes() == right.tobytes()


def test_a_picture_that_cannot_be_decoded_names_its_field(upload: Path) -> None:
    upload.write_text("no picture")
    with pytest.raises(InvalidPicture, match=r"^style\[1\]: found a text") as refused:
        decoding.decode(upload, field="style[1]")
    assert refused.value.field == "style[1]"


def test_no_child_is_left_behind(upload: Path) -> None:
    before = set(psutil.Process().children())
    inspect(upload)
    refusal(upload, b"nothing")
    assert set(psutil.Process().children()) <= before


def test_importing_the_module_loads_no_decoder() -> None:
    code = (
        "import sys, stylequeue_shared.decoding\n"
        "assert not {'PIL', 'numpy', 'flask', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    format=st.sampled_from(ACCEPTED),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255))),
)
def test_a_damaged_upload_is_inspected_or_refused_and_nothing_else(
    tmp_path: Path, format: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(saved(colourful(), format))
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(InvalidPicture):
        assert inspect(tmp_path / "upload", bytes(data)).bytes == len(data)
