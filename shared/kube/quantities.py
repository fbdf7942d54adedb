"""Kubernetes' quantities as numbers, and back. Pure.

What users write is read by :mod:`shared.contracts.common`; what nodes and pods report may be in any of the API's
notations (``128974848``, ``129e6``, ``250m``, ``131072Ki``, ``15Ei``), a fraction of a byte included.
"""

import re
from decimal import ROUND_UP, Decimal
from typing import Final

_SUFFIXES: Final[dict[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?")


def quantity(text: str | int | float) -> Decimal:
    """A quantity's exact value.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(text, str):
        return Decimal(str(text))
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity")
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * _SUFFIXES[suffix or ""]


def cores(text: str | int | float) -> float:
    """CPU cores; ``250m`` is 0.25."""
    return float(quantity(text))


def whole(text: str | int | float) -> int:
    """Bytes, or a count of devices; a fraction counts as one more, as in the API."""
    return int(quantity(text).to_integral_value(rounding=ROUND_UP))


def cpu_quantity(count: float) -> str:
    """Cores as the API writes them: ``2``, ``250m``; never less than a thousandth unless it is nothing."""
    thousandths = int((Decimal(str(count)) * 1000).to_integral_value(rounding=ROUND_UP))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def memory_quantity(size: int) -> str:
    """Bytes as the API writes them, exactly: ``2Gi``, ``1500Mi``, ``1000001``."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        factor = int(_SUFFIXES[unit])
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
