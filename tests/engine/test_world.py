import socket

import pytest

from refbert_dist.engine.world import RENDEZVOUS_PORTS, World, free_port, rendezvous
from refbert_dist.errors import UserError


def test_environment_of_rendezvous_is_read_back():
    variables = rendezvous(rank=3, size=4, port=23456, local_rank=1)
    assert variables == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "23456",
    }
    world = World.from_environment(variables)
    assert world == World(rank=3, size=4, local_rank=1)
    assert not world.is_main


def test_without_variables_the_process_is_alone():
    world = World.from_environment({"HOME": "/"})
    assert world == World(0, 1, 0)
    assert world.is_main


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is ''"),
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2 but WORLD_SIZE is 2"),
    ],
)
def test_incomplete_or_wrong_environment_is_one_sentence(variables, named):
    with pytest.raises(UserError, match=named):
        World.from_environment(variables)


def test_free_port_can_be_listened_on_and_is_not_given_while_taken():
    taken = set()
    sockets = []
    for _ in range(20):
        port = free_port()
        assert port in RENDEZVOUS_PORTS
        assert port not in taken
        taken.add(port)
        listening = socket.socket()
        listening.bind(("127.0.0.1", port))
        listening.listen()
        sockets.append(listening)
    for listening in sockets:
        listening.close()
