"""Settings of the gateway, read from ``ELEARN_<NAME>``."""

from shared.errors import Invalid
from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """What the gateway reads beside what every service does.

    Attributes:
        listen: host and port to answer HTTP on; loopback unless the operator says otherwise. The host ``*`` is every
            address, IPv4 and IPv6.
        admin_token_file: file with a token that may do everything, read at start; empty: none.
        identity_seconds: how long a token or project that was looked up is believed, in seconds. A token
            deleted through another replica works for this long still.
        identity_grace_seconds: how long it is believed while the database is away, in seconds.
        json_limit: most bytes of a JSON body.
        code_limit: most bytes of an archive of code.
        file_limit: most bytes of a file that is put into a datastore.
        predict_limit: most bytes of a prediction's body.
        predict_seconds: how long a prediction may take, in seconds.
        audit_days: how long the audit log is kept, in days.
        heartbeat_seconds: pause between comments on a silent event stream, in seconds.
        slow_reader_seconds: how long a reader of events may not read before it is cut off, in seconds.
        event_streams: most event streams at a time.
    """

    listen: str = "127.0.0.1:8470"
    admin_token_file: str = ""
    identity_seconds: float = 5.0
    identity_grace_seconds: float = 60.0
    json_limit: int = 1024 * 1024
    code_limit: int = 512 * 1024 * 1024
    file_limit: int = 1024 * 1024 * 1024 * 1024
    predict_limit: int = 64 * 1024 * 1024
    predict_seconds: float = 60.0
    audit_days: float = 90.0
    heartbeat_seconds: float = 15.0
    slow_reader_seconds: float = 10.0
    event_streams: int = 500

    def address(self) -> tuple[str, int]:
        """Host and port of ``listen``.

        Raises:
            Invalid: it is not ``host:port``.
        """
        host, colon, port = self.listen.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise Invalid(f"ELEARN_LISTEN: {self.listen!r} is not host:port, such as 127.0.0.1:8470")
        return host.removeprefix("[").removesuffix("]"), int(port)
