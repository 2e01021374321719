"""A real server in a process of its own, asked over real connections."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from finished import PAIRS, SINGLES, exported
from typer.testing import CliRunner

from launchers.cli import app
from refbert_dist.errors import UserError
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.serving.server import check_address

START_S = 120
PROGRAM = (
    "import sys\n"
    "from refbert_dist.inference.pipeline import RefBertPipeline\n"
    "from refbert_dist.serving.app import Limits\n"
    "from refbert_dist.serving.server import serve\n"
    "token = sys.argv[3] or None\n"
    "limits = Limits(**eval(sys.argv[4]))\n"
    "serve(RefBertPipeline(sys.argv[1], 'cpu'), '127.0.0.1', int(sys.argv[2]), token, limits)\n"
)


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    pipeline: RefBertPipeline

    def ask(
        self, body: bytes, method: str = "POST", path: str = "/predict", **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            content = response.read()
            said = dict(response.getheaders())
        finally:
            connection.close()
        return response.status, json.loads(content) if "json" in said["content-type"] else content.decode(), said

    def predict(self, texts: list[Any]) -> list[dict[str, Any]]:
        status, content, _ = self.ask(json.dumps({"texts": texts}).encode())
        assert status == 200, content
        answers: list[dict[str, Any]] = content["answers"]
        return answers

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served(folder: Path, port: int = 0, token: str = "", **limits: float) -> Iterator[Server]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(port), token, repr(limits)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        line = ""
        while not (found := re.search(r"serving .* at http://127\.0\.0\.1:(\d+) ", line)):
            line = process.stderr.readline()
            assert line, "the server has ended"
        yield Server(process, int(found[1]), RefBertPipeline(folder, device="cpu"))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(exported(tmp_path_factory.mktemp("singles"), SINGLES[:20]), body_s=1.0) as server:
        yield server
        assert server.end() == 0


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return all(
        one.keys() == two.keys()
        and one["references"] == two["references"]
        and one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)
        for one, two in zip(found, expected, strict=True)
    )


def test_it_answers_as_the_pipeline_does(singles: Server) -> None:
    texts = [text for text, _ in SINGLES]
    assert close(singles.predict(texts), singles.pipeline(texts))
    assert close(singles.predict([[text] for text in texts[:2]]), singles.pipeline(texts[:2]))
    assert singles.predict([]) == []
    odd = ["", "🎉 \u200b ünïcode", "words " * 100_000]
    assert close(singles.predict(odd), singles.pipeline(odd))


def test_it_says_what_it_serves(singles: Server) -> None:
    status, health, _ = singles.ask(b"", "GET", "/health")
    assert status == 200
    assert health == {
        "status": "ok",
        "model": singles.pipeline.folder.name,
        "labels": 2,
        "sentences": 1,
        "references": 2,
        "known_texts": 20,
    }
    before = float(re.search(r"^refbert_texts_total (.*)$", singles.ask(b"", "GET", "/metrics")[1], re.M)[1])  # type: ignore[index]
    singles.predict(["one", "two"])
    metrics = singles.ask(b"", "GET", "/metrics")[1]
    assert f"refbert_texts_total {before + 2}" in metrics
    assert re.search(r'refbert_requests_total{path="/predict",status="200"} [1-9]', metrics)
    assert re.search(r"^process_resident_memory_bytes [1-9]", metrics, re.M)
    assert "refbert_waiting_texts 0.0" in metrics


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, r'the request is not JSON .*; send {"texts": \["a text"\]}'),
        (b"\xff\xfe", 400, "the request is not JSON"),
        (b"[" * 100_000, 400, "the request is not JSON"),
        (b"[]", 400, "the request has no list of texts; send"),
        (b'{"text": ["a"]}', 400, "the request has no list of texts"),
        (b'{"texts": "a"}', 400, "the request has no list of texts"),
        (b'{"texts": ["a", 3]}', 400, "the request has no list of texts"),
        (b'{"texts": ["a", ["a", "b"]]}', 400, r"text 2 has 2 sentence\(s\), but this model reads single texts"),
        (b'{"texts": [[]]}', 400, r"text 1 has 0 sentence\(s\)"),
        (json.dumps({"texts": ["a"] * 1025}).encode(), 413, "the request has 1,025 texts; send at most 1,024"),
        (json.dumps({"texts": ["a" * (5 << 20)]}).encode(), 413, "the request has more than 4,194,304 bytes"),
    ],
    ids=str,
)
def test_bad_requests_get_one_sentence(singles: Server, body: bytes, status: int, sentence: str) -> None:
    found, content, _ = singles.ask(body)
    assert found == status
    assert content.keys() == {"error"} and re.search(sentence, content["error"]) and "\n" not in content["error"]
    assert len(singles.predict(["still there"])) == 1


def test_other_paths_and_methods(singles: Server) -> None:
    assert singles.ask(b"", "GET", "/predict")[:2] == (405, {"error": "Method Not Allowed"})
    assert singles.ask(b"", "GET", "/")[:2] == (404, {"error": "Not Found"})


def test_a_slow_client_holds_up_nobody(singles: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", singles.port)) for _ in range(20)]
    for connection in slow:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    started = time.monotonic()
    singles.predict(["a text"])
    assert time.monotonic() - started < 1.0, "it waited for the others"
    for connection in slow:
        connection.settimeout(30)
        assert b"408" in connection.recv(4096).split(b"\r\n")[0]
        connection.close()


async def ask_all(port: int, bodies: list[bytes], ready: Callable[[], None] = lambda: None) -> list[tuple[int, Any]]:
    """Every body over a connection of its own, all of which are open before the first one is used."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in bodies]
    ready()

    async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes) -> tuple[int, Any]:
        reader, writer = connection
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        top, _, content = answer.partition(b"\r\n\r\n")
        return int(top.split()[1]), json.loads(content)

    return await asyncio.gather(*(ask(*given) for given in zip(connections, bodies, strict=True)))


def test_a_thousand_requests_at_once(singles: Server) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    texts = [SINGLES[number % 30][0] for number in range(1000)]
    bodies = [json.dumps({"texts": [text]}).encode() for text in texts]
    expected = singles.pipeline(texts)
    server = psutil.Process(singles.process.pid)
    sizes = []
    for _ in range(4):
        answers = asyncio.run(ask_all(singles.port, bodies))
        assert {status for status, _ in answers} == {200}
        assert close([content["answers"][0] for _, content in answers], expected)
        sizes.append(server.memory_info().rss)
    assert sizes[-1] - sizes[1] < 8 << 20, sizes
    metrics = singles.ask(b"", "GET", "/metrics")[1]
    largest = re.search(r'refbert_batch_texts_bucket{le="16.0"} (.*)', metrics)
    every = re.search(r"refbert_batch_texts_count (.*)", metrics)
    assert largest and every and float(largest[1]) < float(every[1]), "no requests were joined"


def test_pairs(tmp_path: Path) -> None:
    with served(exported(tmp_path, PAIRS[:20])) as server:
        texts = [list(pair) for pair in PAIRS[20:]]
        assert close(server.predict(texts), server.pipeline(texts))
        status, content, _ = server.ask(b'{"texts": ["a"]}')
        assert status == 400 and "this model reads pairs of sentences; give 2 each" in content["error"]
        assert server.ask(b"{")[1]["error"].endswith('send {"texts": [["a", "b"]]}')


def test_too_much_at_once_is_refused_and_what_waits_is_answered_at_the_end(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    body = json.dumps({"texts": [text for text, _ in SINGLES] * 20}).encode()
    with served(folder, waiting_texts=3000, batch_texts=600) as server:
        answers = asyncio.run(ask_all(server.port, [body] * 40))
        assert {status for status, _ in answers} == {200, 503}
        busy = next(content for status, content in answers if status == 503)
        assert busy == {"error": "too many texts are waiting; try again"}

        def end_soon() -> None:
            loop = asyncio.get_running_loop()
            loop.call_later(0.3, server.process.send_signal, signal.SIGTERM)

        waiting = asyncio.run(ask_all(server.port, [body] * 4, end_soon))
        assert {status for status, _ in waiting} == {200}
        assert all(len(content["answers"]) == 600 for _, content in waiting)
        assert server.process.wait(60) == 0
        assert server.process.stderr is not None and server.process.stderr.read().endswith("stopped\n")


def test_killed_it_starts_again_at_the_same_port_and_asks_for_its_token(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    with served(folder, token="geheim") as server:
        for headers in ({}, {"Authorization": "Bearer falsch"}, {"Authorization": "geheim"}):
            status, content, said = server.ask(b'{"texts": ["a"]}', **headers)
            assert (status, said["www-authenticate"]) == (401, "Bearer")
            assert content["error"].startswith("the token is missing or wrong")
        assert server.ask(b"", "GET", "/metrics")[0] == 401
        assert server.ask(b"", "GET", "/health")[0] == 200
        assert server.ask(b'{"texts": ["a"]}', Authorization="Bearer geheim")[0] == 200
        server.end(signal.SIGKILL)
        with served(folder, port=server.port) as again:
            assert again.port == server.port
            assert len(again.predict(["a"])) == 1


def test_an_address_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--host is '0.0.0.0', which others can reach, but there is no token"):
        check_address("0.0.0.0", None)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_address(host, None)
    check_address("0.0.0.0", "token")
    folder = exported(tmp_path, SINGLES[:20])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", str(folder), "--port", port])
        sentence = f"cannot listen at 127.0.0.1:{port} (Address already in use); give another --port"
        assert isinstance(result.exception, UserError)
        assert sentence in str(result.exception)
    empty = tmp_path / "token"
    empty.write_text("\n")
    result = CliRunner().invoke(app, ["serve", str(folder), "--token-file", str(empty)])
    assert "which is empty; write a token into it" in str(result.exception)
