"""Settings of the scheduler, from ``ELEARN_<FIELD>``."""

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """Beside those of every service.

    Attributes:
        stop_grace: seconds that a task has between SIGTERM and SIGKILL.
        worker_restarts: how often a worker that died is started again on its address within one attempt.
        log_limit: bytes of log kept for each task; the oldest half goes beyond. In a cluster, 32 MiB at the most.
        code_limit: most bytes of an archive of code.
        code_retention_days: how long an archive that no training refers to is kept, in days.
        board_idle: seconds after which a TensorBoard that nobody looks at is ended.
    """

    stop_grace: float = 10.0
    worker_restarts: int = 10
    log_limit: int = 256 * 2**20
    code_limit: int = 100 * 2**20
    code_retention_days: float = 7.0
    board_idle: float = 900.0
