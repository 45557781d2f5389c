"""Wake-ups: Celery on Redis, and nothing but a job id travels on it.

A message is a hint that some job waits; the database decides which. So a lost, doubled
or late message can cost a delay, never a job.
"""

from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
import structlog
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from stylequeue_shared.addresses import check_redis_address
from stylequeue_shared.errors import BadConfiguration, MachineError
from stylequeue_shared.settings import Settings

TASK = "stylequeue.run"
QUEUE = "stylequeue"

# A worker may wait for a slow server, a request may not.
WORKER_SECONDS = 5
BELL_SECONDS = 3
# Tell a refused server from a short hiccup, and give up.
SHORT_RETRY = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.1,
    "interval_max": 0.2,
}

log = structlog.get_logger()


def worker_celery(settings: Settings) -> Celery:
    """Return the Celery app of a worker, for jobs that run for hours."""
    app = _celery(settings, WORKER_SECONDS, {})
    app.conf.update(
        # Late acknowledgement would deliver a long job again after an hour, whether
        # or not it still runs; the lease in the database does that job instead.
        task_acks_late=False,
        # A reserved message would be stranded behind a long job.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        # A short break of the connection must not end a running job.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_consumer="stylequeue_worker.consumer:Consumer",
        # Importing torch takes longer than the default of 4 s; a child that is not
        # up by then is killed and started again, for ever.
        worker_proc_alive_timeout=60,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def sender_celery(settings: Settings) -> Celery:
    """Return the Celery app of a process that only sends, and soon gives up."""
    app = _celery(settings, BELL_SECONDS, SHORT_RETRY)
    app.conf.update(
        task_publish_retry_policy=SHORT_RETRY,
        broker_pool_acquire_timeout=5,
    )
    return app


def _celery(settings: Settings, seconds: float, retry: dict[str, float]) -> Celery:
    check_redis_address(settings.redis_url)
    app = Celery(
        "stylequeue", broker=_checking(settings.redis_url), set_as_current=False
    )
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        # The database is the one record.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_track_started=False,
        result_backend=None,
        worker_send_task_events=False,
        task_send_sent_event=False,
        task_default_queue=QUEUE,
        broker_transport_options={
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "socket_keepalive": True,
            "health_check_interval": 5,
            **retry,
        },
    )
    return app


class Bell:
    """Wakes workers. Nothing it does takes longer than a few seconds."""

    def __init__(self, settings: Settings) -> None:
        self._app = sender_celery(settings)
        self._redis = _client(settings.redis_url)

    def ring(self, job_id: str) -> bool:
        """Send a wake-up; return whether it was sent. Never raises.

        The housekeeper sends what could not be sent here.
        """
        try:
            # By name: the front end has no task to import.
            self._app.send_task(TASK, args=[job_id], queue=QUEUE, ignore_result=True)
        except Exception as error:
            # Whatever a broken connection raises; the job is recorded already.
            log.warning("wake_up_not_sent", job=job_id, error=str(error))
            return False
        return True

    def waiting(self) -> int | None:
        """Return how many wake-ups no worker has taken; None when Redis is down."""
        try:
            return int(self._redis.llen(QUEUE))
        except (redis.RedisError, OSError):
            return None

    def check(self) -> None:
        """Raise MachineError when Redis does not answer."""
        try:
            self._redis.ping()
        except (redis.RedisError, OSError) as error:
            raise MachineError(
                f"Redis does not answer ({type(error).__name__})"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._app.close()
        self._redis.close()


def _checking(url: str) -> str:
    """Have the certificate of a server that speaks TLS checked.

    Celery alone would do so only where the address says it; redis-py always does.
    """
    address = urlsplit(url)
    if address.scheme != "rediss" or "ssl_cert_reqs=" in address.query:
        return url
    query = f"{address.query}&ssl_cert_reqs=required".lstrip("&")
    return urlunsplit(address._replace(query=query))


def _client(url: str) -> redis.Redis:
    options: dict[str, Any] = {
        "socket_timeout": BELL_SECONDS,
        "socket_connect_timeout": BELL_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    address = urlsplit(url)
    try:
        if address.scheme == "redis+socket":
            # How Celery writes a socket's address; redis-py has no such scheme.
            return redis.Redis(
                unix_socket_path=unquote(address.path),
                username=address.username and unquote(address.username),
                password=address.password and unquote(address.password),
                **options,
            )
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise BadConfiguration(
            "STYLEQUEUE_REDIS: not an address such as redis://host:6379/0, "
            "rediss://:password@host:6379/0 or redis+socket:///folder/redis.sock"
        ) from None
