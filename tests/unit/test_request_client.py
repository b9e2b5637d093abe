"""The client of a request, who may leave in the moment in which what it waits for has come."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from gateway.domain.errors import ClientGone, ServiceUnavailable
from gateway.pacing import Slot
from gateway.requests.client import Client, Stopped
from tests.unit.pacing.callers import Callers, memory_store, pacer_over
from tests.virtual_time import in_virtual_time


def client() -> Client:
    return Client(lambda _: None)


def stop(one: Client) -> None:
    """As another call of the same request does that has failed."""
    one.stop(ServiceUnavailable("another call failed"))


@pytest.mark.parametrize(
    ("leave", "why"), [(Client.hang_up, ClientGone), (stop, ServiceUnavailable)]
)
@in_virtual_time
async def test_a_slot_that_comes_as_its_client_leaves_goes_to_another(
    leave: Callable[[Client], None], why: type[Exception]
) -> None:
    """Or a call would be paid for that nobody waits for."""
    leaving, callers = client(), Callers(pacer_over(memory_store(), rate=0.1))

    def wait(slot: asyncio.Future[Slot]) -> Awaitable[Slot]:
        slot.add_done_callback(lambda _: leave(leaving))
        return leaving.wait(slot)

    (task,) = callers.wait("acme", wait=wait)
    callers.wait("acme")
    with pytest.raises(Stopped) as stopped:
        await task
    assert isinstance(stopped.value.error, why)
    await callers.until_served(1)
    assert callers.times() == [0]


@in_virtual_time
async def test_a_client_that_has_left_frees_what_it_waited_with() -> None:
    """Without the garbage collector: the frames of a request hold its images."""
    leaving = client()

    async def wait() -> weakref.ref[Stopped]:
        try:
            await leaving.wait(asyncio.get_running_loop().create_future())
        except Stopped as stopped:
            return weakref.ref(stopped)
        raise AssertionError("it came")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    gc.disable()
    try:
        leaving.hang_up()
        stopped = await task
        await asyncio.sleep(0)  # the loop's own callback holds it until then
        assert stopped() is None
    finally:
        gc.enable()
