"""What gunicorn's threads do: run the application, and write its answer piecewise."""

from collections.abc import Generator
from typing import Any

from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from stylequeue_web.connection import Connection


class AnsweringWorker(ThreadWorker):
    """Answers requests that are whole; see BufferingWorker for the event loop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The longest body that the application takes.
        self.max_body_bytes = 0

    def handle(self, conn: Connection) -> bool:
        """Run the application, or go on with its answer, as far as the client reads.

        Return whether the answer is finished.
        """
        try:
            if conn.error is not None:
                raise conn.error
            if conn.answer is None:
                conn.answer = self._answer(conn)
            for _ in conn.answer:
                if not conn.output.flush():
                    return False
                if conn.output.is_broken:
                    conn.answer.close()
                    return True
        except Exception as error:
            self._fail(conn, error)
        return conn.output.flush()

    def _answer(self, conn: Connection) -> Generator[None, None, None]:
        """Run the application, and write its answer piece by piece."""
        incoming = conn.incoming
        request = incoming.request
        # The client was told before its body came.
        request._expected_100_continue = False
        conn.response, environ = wsgi.create(
            request, conn.output, conn.client, conn.server, self.cfg
        )
        environ["wsgi.multithread"] = True
        if incoming.is_too_long:
            # The application refuses it by its length, which one in chunks lacks.
            environ["CONTENT_LENGTH"] = str(self.max_body_bytes + 1)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
        if incoming.is_unread or not self.alive:
            conn.response.force_close()
        items = self.wsgi(environ, conn.response.start_response)
        try:
            for item in items:
                conn.response.write(item)
                yield
            conn.response.close()
        finally:
            if hasattr(items, "close"):
                items.close()
        conn.keeps_alive = not (conn.response.should_close() or request.body.failed)

    def _fail(self, conn: Connection, error: Exception) -> None:
        """Answer an error, or end the connection where an answer has begun."""
        request = conn.incoming.request
        if conn.response is not None and conn.response.headers_sent:
            self.log.error("Error handling %s", request.uri, exc_info=error)
        elif request is None and isinstance(error, StopIteration | OSError):
            # The head holds no request.
            conn.output.is_broken = True
        else:
            self.handle_error(request, conn.output, conn.client, error)
        conn.error = None
        conn.answer = (None for _ in ())
