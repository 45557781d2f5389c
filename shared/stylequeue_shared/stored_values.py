"""Read and bound what a row holds, however wrong it is.

A row may hold a time far off because a clock was wrong, and a number or a text that no
version writes because somebody changed it by hand. PostgreSQL raises where SQLite does
not (`exp` of -800, a sum of two numbers of 1e308, a cast of a text), and one such row
would stop every claim. So each value is bounded before anything is computed from it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, ColumnElement, Dialect, Float, Text, case, cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

# The latest time that is believed; year 5138.
LAST_TIME = 1e11
# The longest time that one job can take, whatever its row says: 115 days.
LONGEST_SECONDS = 1e7
_LARGEST_FLOAT = 1.7e308


class Unreadable:
    """What stands for JSON that cannot be read."""

    def __repr__(self) -> str:
        """Name it in a log."""
        return "unreadable JSON"


UNREADABLE = Unreadable()


def between(
    value: Any, low: float, high: float, default: Any = 0.0
) -> ColumnElement[Any]:
    """Return a number as SQL, no less than `low` and no more than `high`.

    `default` stands for what is no finite number. It may be `null()`.
    """
    return case(
        (value <= low, low),
        (value <= high, value),
        (value <= _LARGEST_FLOAT, high),
        else_=default,
    )


def time_of(value: Any) -> ColumnElement[Any]:
    """Return a time as SQL that can be computed with."""
    return between(value, 0.0, LAST_TIME)


def seconds_of(value: Any, default: Any = 0.0) -> ColumnElement[Any]:
    """Return as SQL how long a job takes, bounded."""
    return between(value, 0.0, LONGEST_SECONDS, default)


class json_number(FunctionElement[float]):  # noqa: N801 - reads as SQL does
    """A number in a JSON object, null unless it is one: `json_number(column, name)`."""

    type = Float()
    inherit_cache = True


@compiles(json_number, "sqlite")
def _json_number_sqlite(
    element: json_number, compiler: SQLCompiler, **options: Any
) -> str:
    column, name = (compiler.process(part, **options) for part in element.clauses)
    path = f"'$.' || {name}"
    return (
        f"(CASE WHEN json_valid({column}) THEN "
        f"CASE WHEN json_type({column}, {path}) IN ('integer', 'real') "
        f"THEN CAST(json_extract({column}, {path}) AS REAL) END END)"
    )


@compiles(json_number, "postgresql")
def _json_number_postgresql(
    element: json_number, compiler: SQLCompiler, **options: Any
) -> str:
    column, name = (compiler.process(part, **options) for part in element.clauses)
    # A cast of 1e999 raises, so only numbers that are written short are read.
    short = r"'^-?[0-9]{1,20}([.][0-9]{1,30})?([eE][-+]?[0-9]{1,2})?$'"
    return (
        f"(CASE WHEN json_typeof({column} -> {name}) = 'number' "
        f"AND ({column} ->> {name}) ~ {short} "
        f"THEN ({column} ->> {name})::double precision END)"
    )


class StoredJSON(TypeDecorator[Any]):
    """JSON that is read as UNREADABLE where it cannot be read.

    The types of SQLAlchemy and the drivers raise then, and so give none of the rows.
    """

    impl = JSON
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Have the driver give the text."""
        return cast(column, _JSONText())


class _JSONText(TypeDecorator[Any]):
    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            return json.loads(
                value, parse_float=_finite_float, parse_constant=lambda name: None
            )
        except (ValueError, TypeError, RecursionError):
            return UNREADABLE


def _finite_float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def finite(value: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """Return a number within bounds, None if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return max(low, min(high, value)) if math.isfinite(value) else None
    except OverflowError:  # an integer larger than any float
        return None


def object_of(value: Any) -> dict[str, Any] | None:
    """Return a JSON object, None if the value is something else."""
    return dict(value) if isinstance(value, Mapping) else None


def numbers_of(value: Any) -> dict[str, Any]:
    """Return those members of a JSON object that are finite numbers."""
    return {
        name: one
        for name, one in (object_of(value) or {}).items()
        if finite(one) is not None
    }


def estimate_of(value: Any) -> dict[str, Any] | None:
    """Return the estimate of a job as it was stored, None if there is no sound one."""
    found = object_of(value) or {}
    seconds = finite(found.get("seconds"), 0.0, LONGEST_SECONDS)
    return None if seconds is None else {**found, "seconds": seconds}
