"""What the lock says, and what the package needs of it."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[2] / "requirements.lock"
PINNED = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[\w.+!]+)( ; .+)?$")


def locked() -> dict[str, set[str]]:
    """Read the lock: versions by name; more than one where markers choose."""
    versions: dict[str, set[str]] = {}
    for line in LOCK.read_text().splitlines():
        if line.startswith("#"):
            continue
        pinned = PINNED.match(line)
        assert pinned, f"the lock has names, versions and markers only, not {line!r}"
        versions.setdefault(pinned["name"], set()).add(pinned["version"])
    return versions


def closure(*extras: str) -> set[str]:
    """Name all that an installation with these extras needs, by what is installed."""
    waiting = [("stylequeue", frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            marker = needed.marker
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if marker and not any(marker.evaluate(one) for one in environments):
                continue
            item = (canonicalize_name(needed.name), frozenset(needed.extras))
            if item not in seen:
                seen.add(item)
                waiting.append(item)
    return {name for name, _ in seen} - {"stylequeue"}
