"""What is known of image hosts that cannot be reached, before more is paid for."""

from __future__ import annotations

import pytest

from gateway.domain.errors import ImageHostsUnreachable
from gateway.upstream.images import LOOK_AGAIN_S, MOST_HOSTS, ImageHosts


class Network:
    """Hosts that can be reached or not, at a time that stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.blocked: set[str] = set()
        self.looks: list[str] = []
        self.hosts = ImageHosts(self.reach, lambda: self.now)

    async def reach(self, host: str) -> None:
        self.looks.append(host)
        if host in self.blocked:
            raise ImageHostsUnreachable(f"still {host}")


async def test_nothing_is_looked_at_as_long_as_downloads_begin() -> None:
    network = Network()

    await network.hosts.require()

    assert network.looks == []


async def test_after_one_failure_nothing_more_is_paid_for() -> None:
    """The same words again and again, without a look each time."""
    network = Network()
    network.hosts.block("a", "set this")

    for _ in range(3):
        with pytest.raises(ImageHostsUnreachable, match="set this"):
            await network.hosts.require()
    assert network.looks == []


async def test_it_is_looked_at_again_after_a_while() -> None:
    network = Network()
    network.blocked.add("a")
    network.hosts.block("a", "set this")

    network.now += LOOK_AGAIN_S
    with pytest.raises(ImageHostsUnreachable, match="still a"):
        await network.hosts.require()
    network.blocked.clear()
    network.now += LOOK_AGAIN_S
    await network.hosts.require()

    assert network.looks == ["a", "a"]


async def test_a_download_that_begins_ends_it_at_once() -> None:
    network = Network()
    network.hosts.block("a", "set this")

    network.hosts.unblock("a")

    await network.hosts.require()


async def test_one_of_several_hosts_is_enough_to_refuse() -> None:
    """Which of them holds the next image is known only once it is paid for."""
    network = Network()
    network.blocked.add("b")
    network.hosts.block("a", "set this")
    network.hosts.block("b", "set this")
    network.now += LOOK_AGAIN_S

    with pytest.raises(ImageHostsUnreachable, match="still b"):
        await network.hosts.require()


async def test_names_do_not_pile_up() -> None:
    network = Network()
    for number in range(100):
        network.hosts.block(str(number), "set this")
    network.now += LOOK_AGAIN_S

    await network.hosts.require()

    assert len(network.looks) == MOST_HOSTS
