import pytest

from stylequeue_shared.addresses import check_redis_address, database_address
from stylequeue_shared.database import Database
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.queue import Bell, worker_celery
from stylequeue_shared.settings import Settings

POSTGRESQL = "postgresql+psycopg://user:hunter2@host/name"
REDIS = "redis://:hunter2@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("url", "option"),
    [
        (f"{POSTGRESQL}?foo=hunter2", "foo"),
        (f"{POSTGRESQL}?sslmode=require&pool_size=3", "pool_size"),
        (f"{POSTGRESQL}?prepare_threshold=5", "prepare_threshold"),
        (f"{POSTGRESQL}?plugin=hunter2", "plugin"),
        ("sqlite:////folder/file.db?foo=1", "foo"),
        ("sqlite:////folder/file.db?timeout=1", "timeout"),
    ],
)
def test_an_unknown_option_in_the_address_of_a_database_is_named(
    url: str, option: str
) -> None:
    with pytest.raises(BadConfiguration) as refused:
        Database(url)
    said = refused.value.message
    assert said.startswith(f"STYLEQUEUE_DATABASE: found the unknown option '{option}'")
    assert "hunter2" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "query",
    [
        "host=a&host=b&target_session_attrs=read-write",
        "sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "application_name=stylequeue&options=-c%20search_path%3Dx",
    ],
)
def test_what_the_library_of_postgresql_knows_is_allowed(query: str) -> None:
    assert database_address(f"{POSTGRESQL}?{query}").query


@pytest.mark.parametrize("port", ["abc", "1.5"])
def test_a_port_that_is_no_number_is_no_address(port: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_DATABASE: not an"):
        Database(f"postgresql://user@host:{port}/name")


@pytest.mark.parametrize(
    ("url", "option"),
    [
        (f"{REDIS}?foo=hunter2", "foo"),
        (f"{REDIS}?foo", "foo"),
        # redis-py would take it, Celery would not.
        (f"{REDIS}?socket_timeout=5", "socket_timeout"),
        (f"{REDIS}?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
        (f"rediss{REDIS[5:]}?ssl_ca_certs=/ca.pem&ssl_x=1", "ssl_x"),
        ("redis+socket:///folder/redis.sock?virtual_host=1", "virtual_host"),
    ],
)
def test_an_unknown_option_in_the_address_of_redis_is_named(
    url: str, option: str
) -> None:
    for connect in (Bell, worker_celery):
        with pytest.raises(BadConfiguration) as refused:
            connect(Settings(redis=url))
        said = refused.value.message
        assert said.startswith(f"STYLEQUEUE_REDIS: found the unknown option '{option}'")
        assert "hunter2" not in said


def test_a_way_to_check_certificates_that_nobody_knows_is_refused() -> None:
    address = "rediss://127.0.0.1/0?ssl_cert_reqs="
    check_redis_address(f"{address}required")
    with pytest.raises(BadConfiguration, match="allowed, which are none, optional"):
        check_redis_address(f"{address}bogus")
