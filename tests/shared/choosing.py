"""Job settings as a request would bring them, for tests without the web side."""

import pytest

from stylequeue_shared.errors import InvalidSetting
from stylequeue_shared.job_settings import (
    JobSettings,
    complete_settings,
    parse_settings,
)


def complete(text: str | bytes | None, styles: int = 1, **maxima: int) -> JobSettings:
    """Return the settings that the text asks for."""
    return complete_settings(parse_settings(text), styles=styles, **maxima)


def refused(text: str | bytes, styles: int = 1, **maxima: int) -> InvalidSetting:
    """Return what is said about settings that must be refused."""
    with pytest.raises(InvalidSetting) as caught:
        complete(text, styles, **maxima)
    assert caught.value.field
    assert len(caught.value.message) < 1000
    return caught.value
