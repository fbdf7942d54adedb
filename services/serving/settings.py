"""What this room reads from the environment."""

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """The serving service's settings.

    Attributes:
        serving_host: address on which local model servers listen.
        serving_cpu: cores that a replica is given where its serving names none.
        serving_memory: memory of such a replica, like 2Gi. elearn's own server takes 600 to 670 MiB with a small model,
            most of it TensorFlow itself.
        serving_start_seconds: a replica that does not answer so long after its start has failed, in seconds.
        serving_grace_seconds: how long a replica that is ended may take to answer what it has begun, in seconds.
        serving_max_batch: rows that a replica runs together at the most.
        serving_batch_micros: the longest that a request waits for others, in microseconds.
    """

    serving_host: str = "127.0.0.1"
    serving_cpu: float = 0.25
    serving_memory: str = "768Mi"
    serving_start_seconds: float = 180.0
    serving_grace_seconds: float = 10.0
    serving_max_batch: int = 64
    serving_batch_micros: int = 1000
