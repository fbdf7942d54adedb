"""Whether a service says that it is ready."""

import asyncio
import http.client


async def is_ready(port: int, timeout: float = 5.0) -> bool:
    """Whether ``GET /readyz`` on 127.0.0.1:``port`` answers 200."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def lack(port: int, timeout: float = 2.0) -> str | None:
    """What the service lacks, in its own words; None when it is ready. Blocks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"does not answer ({error})" if str(error) else "does not answer"
    finally:
        connection.close()
    return None if response.status == 200 else body or f"answers {response.status}"
