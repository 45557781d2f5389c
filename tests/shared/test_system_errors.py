import errno
import os

import pytest

from stylequeue_shared.errors import DiskFull, MachineError
from stylequeue_shared.system_errors import as_machine_error, machine_errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_a_full_temporary_folder(number: int) -> None:
    with pytest.raises(DiskFull, match="temporary folder is full"), machine_errors():
        raise OSError(number, os.strerror(number), "/secret/path")


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EROFS, errno.EIO],
)
def test_what_the_machine_lacks_is_told_without_paths(number: int) -> None:
    with pytest.raises(MachineError) as told, machine_errors():
        raise OSError(number, os.strerror(number), "/secret/path")
    assert told.value.status == 503
    assert "secret" not in told.value.message
    assert told.value.message.endswith("; try again later.")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EPIPE, None])
def test_other_errors_stay_what_they_are(number: int | None) -> None:
    error = OSError("odd") if number is None else OSError(number, os.strerror(number))
    assert as_machine_error(error) is None
    with pytest.raises(OSError) as same, machine_errors():  # noqa: PT011
        raise error
    assert same.value is error
