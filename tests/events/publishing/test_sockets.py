"""Opening a rank's sockets: ports that are taken, and addresses that can't be bound."""

from __future__ import annotations

import socket
import threading

import pytest

from app.errors import ConfigError, EndpointInUseError
from tests.support.events.ranks import MakeRank
from tests.support.free_ports import find_free_ports


@pytest.mark.parametrize("taken", [1, 9, 5], ids=["events", "load", "replay"])
def test_a_taken_port_is_an_error_that_names_port_and_rank(make_rank: MakeRank, taken: int) -> None:
    base = find_free_ports(12)
    port = base + taken
    in_use = pytest.raises(EndpointInUseError, match=rf"rank 1 .*:{port}\b")
    with socket.create_server(("127.0.0.1", port)), in_use:
        make_rank(
            {"dp_rank": 1, "dp_size": 2, "bind_timeout_s": 0.1},
            endpoint=f"tcp://127.0.0.1:{base}",
            replay_endpoint=f"tcp://127.0.0.1:{base + 4}",
        )
    # Nothing of the failed start is left over.
    make_rank(
        {"dp_rank": 1, "dp_size": 2},
        endpoint=f"tcp://127.0.0.1:{base}",
        replay_endpoint=f"tcp://127.0.0.1:{base + 4}",
    )


def test_a_port_that_its_last_owner_is_leaving_is_waited_for(make_rank: MakeRank) -> None:
    port = find_free_ports(4)
    owner = socket.create_server(("127.0.0.1", port))
    leaving = threading.Timer(0.2, owner.close)
    leaving.start()
    make_rank(endpoint=f"tcp://127.0.0.1:{port}")
    leaving.join()


def test_a_publisher_can_take_the_port_of_one_just_closed(make_rank: MakeRank) -> None:
    endpoint = f"tcp://127.0.0.1:{find_free_ports(4)}"
    first = make_rank(endpoint=endpoint).publisher
    first.close()
    second = make_rank(endpoint=endpoint).publisher
    assert second.epoch != first.epoch


def test_an_address_that_is_not_of_this_machine_is_a_config_error(make_rank: MakeRank) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        make_rank(endpoint="tcp://192.0.2.1:5557", bind="bind")
