"""Mutated pictures of every format, sent to the real web server.

    python -m bench.fuzz_uploads [--uploads 10000] [--seed 1] [--folder PICTURES]

Each upload is a valid picture of which some bytes were changed, cut out, repeated or
replaced by those of another picture. The server may accept or refuse each of them, but
never answers with a 5xx, loses a process or grows. Accepted pictures are read back as
renditions. `--folder` adds files of your own, such as the test pictures of Pillow.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from bench import machine
from bench.seaweedfs import free_ports
from bench.services import Client, spawn
from stylequeue_shared.embedded import EmbeddedRedis
from stylequeue_shared.migrate import migrate
from stylequeue_shared.settings import Settings

# More than the processors, so that the server always has something to decode.
CLIENTS = 4
# The server limits submissions per address, and all of 127.0.0.0/8 is this machine.
UPLOADS_PER_ADDRESS = 50
# Memory that the server may take during the second half of the uploads. In the first
# half caches fill up that have limits: SQLite's of pages, 2 MB a connection, and
# Python's of compiled patterns, of which werkzeug has new ones for each form.
GROWTH_MB = 10.0
START_SECONDS = 60.0
# Numbers at which lengths, sizes and offsets overflow.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LARGEST_FILE = 2_000_000


@dataclass
class Outcome:
    """Count the answers, and record failures and memory of the server."""

    statuses: Counter[int] = field(default_factory=Counter)
    renditions: Counter[int] = field(default_factory=Counter)
    # The seeds of uploads that were answered by a 5xx, or not at all.
    failed: list[tuple[int, str]] = field(default_factory=list)
    dead_processes: int = 0
    growth_mb: float = 0.0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether no upload got a 5xx and no process died."""
        return not self.failed and not self.dead_processes


def main() -> int:
    """Send the uploads and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    samples = [*drawn_samples(), *_files_in(options.folder)]
    found = machine.describe() | {"seed": options.seed, "samples": len(samples)}
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(
            *(Path(folder), samples, options.uploads, options.seed),
            say=partial(print, flush=True),
        )
    machine.report("fuzz_uploads", rows(outcome), found)
    for number, answer in outcome.failed[:20]:
        print(f"upload {number}: {answer}")
    return 0 if outcome.is_clean and outcome.growth_mb < GROWTH_MB else 1


def fuzz(
    folder: Path,
    samples: Sequence[bytes],
    count: int,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Send `count` mutations of the samples to a web server in the folder."""
    home = folder / "home"
    home.mkdir()
    [port] = free_ports(1)
    settings = Settings(home=home, port=port, max_waiting=10**9)
    migrate(settings.database_url)
    redis = EmbeddedRedis(home)
    valkey = redis.start()
    web = spawn("web", settings, home / "web.log")
    try:
        client = Client("127.0.0.1", settings.port)
        _wait_until(client.is_up)
        return _send_all(settings.port, web.pid, samples, count, seed, say)
    finally:
        web.terminate()
        web.wait(30)
        redis.stop(valkey)


def _send_all(
    port: int,
    server: int,
    samples: Sequence[bytes],
    count: int,
    seed: int,
    say: Callable[[str], None],
) -> Outcome:
    outcome, lock = Outcome(), threading.Lock()
    style = _encoded(_drawing(32, 32), "PNG")
    family = _family(server)
    began, warm_mb = time.monotonic(), 0.0

    def send(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        picture = mutated(samples, chance)
        # The last byte is not 1, the address of all other clients.
        block, last = divmod(number // UPLOADS_PER_ADDRESS, 250)
        client = Client("127.0.0.1", port, source=f"127.0.{block}.{last + 2}")
        status, rendition, answer = _upload(client, picture, style)
        with lock:
            outcome.statuses[status] += 1
            if rendition is not None:
                outcome.renditions[rendition] += 1
            if status >= 500 or status == 0 or (rendition or 200) >= 500:
                outcome.failed.append((number, answer))

    with ThreadPoolExecutor(CLIENTS) as pool:
        for first in range(0, count, step := max(1, count // 10)):
            list(pool.map(send, range(first, min(first + step, count))))
            if first <= count // 2:
                warm_mb = _memory_mb(family)
            memory = f"{_memory_mb(family):.0f} MB"
            say(
                f"{time.monotonic() - began:6.0f} s, {memory}: {dict(outcome.statuses)}"
            )
    outcome.seconds = time.monotonic() - began
    outcome.dead_processes = len(family - _family(server))
    outcome.growth_mb = _memory_mb(family) - warm_mb
    return outcome


def _upload(
    client: Client, picture: bytes, style: bytes
) -> tuple[int, int | None, str]:
    """Submit a picture; return the status, that of its rendition, and the answer."""
    settings = {"image_size": 32, "steps": 1, "style_layers": ["conv1_1"]}
    settings |= {"content_layers": ["conv1_1"]}
    try:
        status, answer = client.send([picture, style], **settings)
        if status != 201:
            return status, None, answer.decode(errors="replace")[:300]
        path = f"/api/v1/jobs/{json.loads(answer)['id']}/content?size=256"
        rendition, _, body = client.ask(path)
        return status, rendition, body[:300].decode(errors="replace")
    except OSError as error:
        return 0, None, repr(error)


def mutated(samples: Sequence[bytes], chance: random.Random) -> bytes:
    """Return one of the samples with one to a few faults in it."""
    data = bytearray(chance.choice(samples))
    other = chance.choice(samples)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        chance.choice(FAULTS)(data, other, chance)
    return bytes(data[:LARGEST_FILE])


def _place(data: bytearray, chance: random.Random) -> int:
    """Choose a place, one in two among the headers at the beginning."""
    length = len(data) if chance.random() < 0.5 else min(len(data), 256)
    return chance.randrange(max(1, length))


def _change_bits(data: bytearray, other: bytes, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _change_bytes(data: bytearray, other: bytes, chance: random.Random) -> None:
    place = _place(data, chance)
    data[place : place + 4] = chance.randbytes(chance.randrange(1, 5))


def _write_number(data: bytearray, other: bytes, chance: random.Random) -> None:
    place, length = _place(data, chance), chance.choice((1, 2, 4))
    number = chance.choice(EDGES) & (256**length - 1)
    order = chance.choice(("little", "big"))
    data[place : place + length] = number.to_bytes(length, order)


def _cut_out(data: bytearray, other: bytes, chance: random.Random) -> None:
    place = _place(data, chance)
    del data[place : place + chance.choice((1, 4, 64, 1024))]


def _cut_short(data: bytearray, other: bytes, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _repeat(data: bytearray, other: bytes, chance: random.Random) -> None:
    place = _place(data, chance)
    part = data[place : place + chance.choice((4, 12, 64, 1024))]
    data[place:place] = part * chance.choice((1, 2, 50))


def _splice(data: bytearray, other: bytes, chance: random.Random) -> None:
    place = _place(data, chance)
    start = chance.randrange(max(1, len(other)))
    data[place : place + 64] = other[start : start + chance.choice((16, 64, 4096))]


FAULTS = (
    *(_change_bits, _change_bytes, _write_number, _cut_out, _cut_short),
    *(_repeat, _splice),
)


def drawn_samples() -> list[bytes]:
    """Draw a small valid picture of every format and most of their kinds."""
    rgb = _drawing(64, 48)
    rgba = rgb.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    grey, cmyk, palette = rgb.convert("L"), rgb.convert("CMYK"), rgb.convert("P")
    deep = Image.new("I;16", rgb.size, 30_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(_encoded(one, "JPEG") for one in (rgb, grey, cmyk)),
        *(_encoded(rgb, "JPEG", progressive=True), _encoded(rgb, "JPEG", exif=exif)),
        *(_encoded(one, "PNG") for one in (rgb, rgba, grey, palette, deep)),
        *(_encoded(rgb.convert("1"), "PNG"), _encoded(palette, "PNG", transparency=3)),
        *(_encoded(one, "WEBP") for one in (rgb, rgba)),
        *(_encoded(rgba, "WEBP", lossless=True), _encoded(rgb, "BMP")),
        *(_encoded(one, "BMP") for one in (rgba, grey, palette)),
        *(_encoded(one, "GIF") for one in (rgb, grey)),
        _encoded(rgb, "GIF", save_all=True, append_images=[grey.convert("RGB")]),
        *(_encoded(one, "TIFF") for one in (rgb, rgba, grey, cmyk, deep)),
        *(
            _encoded(rgb, "TIFF", compression=name)
            for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        *(_encoded(one, "AVIF") for one in (rgb, rgba)),
    ]


def _drawing(width: int, height: int) -> Image.Image:
    x = Image.linear_gradient("L").rotate(90).resize((width, height))
    y = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (x, y, Image.radial_gradient("L").resize(x.size)))


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _files_in(folder: Path | None) -> list[bytes]:
    if folder is None:
        return []
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.read_bytes() for path in files if path.stat().st_size < LARGEST_FILE]


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the outcome as the rows of a table."""
    found: list[dict[str, Any]] = [
        {"what": f"answers {status or 'missing'}", "value": number}
        for status, number in sorted(outcome.statuses.items())
    ]
    found += [
        {"what": f"renditions {status}", "value": number}
        for status, number in sorted(outcome.renditions.items())
    ]
    failed, dead = len(outcome.failed), outcome.dead_processes
    found += [
        {"what": "5xx or no answer", "value": failed, "goal": 0},
        {"what": "dead processes", "value": dead, "goal": 0},
        {"what": "growth in MB", "value": outcome.growth_mb, "goal": GROWTH_MB},
        {"what": "seconds", "value": outcome.seconds},
    ]
    return [{"what": "", "value": None, "goal": None, **row} for row in found]


def _family(server: int) -> set[int]:
    """Return the server's own processes, without the decoders that come and go."""
    process = psutil.Process(server)
    return {server, *(child.pid for child in process.children())}


def _memory_mb(family: set[int]) -> float:
    """Return what the processes that are left have to themselves."""
    left = [psutil.Process(pid) for pid in family if psutil.pid_exists(pid)]
    return sum(process.memory_full_info().uss for process in left) / 1e6


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the web server does not answer")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
