"""TLS before a real server whose wheel was built without it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import trustme

# What a client of PostgreSQL asks first, in the clear, and what it wants to hear.
ASKS_FOR_TLS, YES = bytes.fromhex("0000000804d2162f"), b"S"


@contextmanager
def speaking_tls(
    authority: trustme.CA, behind: Path, *, asked_first: bool = False
) -> Iterator[int]:
    """Yield the port at which `localhost` speaks TLS for the server on that socket.

    `asked_first`: only after it was asked to, as PostgreSQL does.
    """
    context = SSLContext(PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if asked_first:
                # One that does not ask is refused: nothing goes on in the clear.
                if await reader.readexactly(len(ASKS_FOR_TLS)) != ASKS_FOR_TLS:
                    return
                writer.write(YES)
            await writer.start_tls(context)
            inside, outside = await asyncio.open_unix_connection(behind)
            writers.append(outside)
            await asyncio.gather(pump(reader, outside), pump(inside, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            for one in writers:
                one.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(serve, "localhost", 0)
        port.append(server.sockets[0].getsockname()[1])
        started.set()
        await stopped.wait()
        server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    port: list[int] = []
    started, stopped = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait(30)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
