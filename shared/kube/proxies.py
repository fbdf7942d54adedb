"""Which proxy the environment names for a server: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as kubectl reads them."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def environment_proxy(server: str) -> str:
    """URL of the proxy for a server, or ""."""
    url, proxies = urlsplit(server), getproxies()
    proxy = proxies.get(url.scheme, "")
    if not proxy or proxy_bypass(url.netloc):
        return ""
    address = _address(url.hostname or "")
    if address is not None and (address.is_loopback or _is_spared(address, proxies.get("no", ""))):
        return ""
    return "" if url.hostname == "localhost" else proxy


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_spared(address: IPv4Address | IPv6Address, spared: str) -> bool:
    """Whether it is in a network that is spared: of those the standard library does not know."""
    for each in spared.split(","):
        try:
            if "/" in each and address in ip_network(each.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False
