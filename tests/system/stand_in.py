"""`stylequeue up` with parts that start at once and behave as they are told.

    python stand_in.py up PART...    as `stylequeue up`, these parts from below
    python stand_in.py worker        like Celery, a main process with a child
    python stand_in.py web           answers 200
    python stand_in.py housekeeper   does nothing

STAND_IN=stubborn: the worker and its child ignore SIGTERM. STAND_IN=orphan: the worker
ends and leaves its child behind. STAND_IN=failing: the housekeeper fails again and
again, and three times are enough to give it up. STAND_IN=resting: it fails once, and
the pause after that lasts an hour. STAND_IN=misconfigured: it ends with status 2.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

HOME = Path(os.environ.get("STYLEQUEUE_HOME", "."))
STAND_IN = os.environ.get("STAND_IN", "")


def up() -> int:
    from stylequeue_shared import cli, launcher, restarts

    others = launcher.part_command

    def part_command(name: str) -> list[str]:
        if name in sys.argv[2:]:
            return [sys.executable, "-P", __file__, name]
        return others(name)

    launcher.part_command = part_command
    if STAND_IN == "stubborn":
        launcher.up = functools.partial(launcher.up, grace=2)
    if STAND_IN == "failing":
        restarts.FIRST_PAUSE, restarts.MAX_FAILURES = 0.1, 3
    if STAND_IN == "resting":
        restarts.FIRST_PAUSE = restarts.LONGEST_PAUSE = 3600
    cli.main(["up"])


def worker() -> int:
    child = os.fork()
    if not child:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: (HOME / "child-was-signalled").touch())
        sleep()
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    while not asked or STAND_IN == "stubborn":
        time.sleep(0.05)
    if STAND_IN != "orphan":
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 0


def web() -> int:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    address = ("127.0.0.1", int(os.environ["STYLEQUEUE_PORT"]))
    HTTPServer(address, Yes).serve_forever()
    return 0


def housekeeper() -> int:
    if STAND_IN in ("failing", "resting", "misconfigured"):
        return 2 if STAND_IN == "misconfigured" else 1
    sleep()
    return 0


def sleep() -> None:
    while True:
        time.sleep(60)


if __name__ == "__main__":
    # Which the parts that have no handler would not call a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(globals()[sys.argv[1]]())
