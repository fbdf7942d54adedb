"""The gateway's composition root."""

import ipaddress
from pathlib import Path

import aiohttp
import structlog

from services.api.access import Access
from services.api.audit import AuditLog
from services.api.contracts import documents
from services.api.gateway import Gateway
from services.api.listener import listen
from services.api.model import digest_of
from services.api.resolver import HastyResolver
from services.api.routes.everything import ROUTES
from services.api.routes.projects import ensure_default
from services.api.settings import Settings
from shared.errors import Invalid, Unavailable
from shared.service import Platform, Room

_log = structlog.get_logger(__name__)

_CONNECT_SECONDS = 2.0
_QUIET_SECONDS = 60.0


async def compose(platform: Platform, settings: Settings) -> Room:
    """Build the gateway and begin to answer HTTP.

    Raises:
        Invalid: the operator's token can't be read, or the address is none.
        Conflict: the address is taken.
        Unavailable: the database is away.
    """
    admin = read_admin_token(settings.admin_token_file)
    host, port = settings.address()
    await ensure_default(platform.database, platform.outbox)
    client = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_QUIET_SECONDS),
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=100, resolver=HastyResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
    audit = AuditLog(platform.database, settings.audit_days)

    async def bus_is_up() -> None:
        if not platform.bus.up:
            raise Unavailable("the message bus (NATS) is away")

    gateway = Gateway(
        settings=settings,
        bus=platform.bus,
        database=platform.database,
        outbox=platform.outbox,
        access=Access(
            platform.database,
            admin,
            fresh=settings.identity_seconds,
            grace=settings.identity_grace_seconds,
        ),
        audit=audit,
        client=client,
        checks={"database": platform.database.ping, "bus": bus_is_up},
        documents=documents(),
    )
    if not is_loopback(host):
        _log.warning("tokens travel in the clear beyond this machine: put TLS in front", listen=settings.listen)
    try:
        stop = await listen(gateway.application(ROUTES), host, port)
    except BaseException:
        await client.close()
        raise
    return Room(background={"audit log": audit.run}, close=(stop, audit.close, client.close))


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_admin_token(file: str) -> bytes | None:
    """The digest of the operator's token; None where no file is named.

    Raises:
        Invalid: the file can't be read, or what is in it is too short to be safe.
    """
    if not file:
        return None
    try:
        secret = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"ELEARN_ADMIN_TOKEN_FILE: {file} can't be read: {error}") from error
    if len(secret) < 16 or any(letter.isspace() for letter in secret):
        raise Invalid(f"ELEARN_ADMIN_TOKEN_FILE: {file} must hold one token of 16 or more characters")
    return digest_of(secret)
