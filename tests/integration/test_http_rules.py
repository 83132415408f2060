"""HTTP as clients and gateways speak it, through Ray's proxy: methods, slashes, compression, other pages."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.graph.exchanges import refused
from tests.support.graph.serve_graph import ServeGraph

TEXT: Any = {"prompt": "Hello", "max_tokens": 1}
PAGE = "https://page.example.org"


@pytest.mark.parametrize("path", ["/v1/models/", "//v1//models", "/v1/models"])
def test_slashes_too_many(tiny_graph: ServeGraph, path: str) -> None:
    answer = tiny_graph.http.get(f"{tiny_graph.url}{path}")
    assert (answer.status_code, answer.json()["object"]) == (200, "list")


def test_head_and_options(tiny_graph: ServeGraph) -> None:
    head = tiny_graph.http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    options = tiny_graph.http.options("/v1/completions/")
    assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, POST")


def test_a_page_of_another_origin(tiny_graph: ServeGraph) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    assert (
        tiny_graph.http.options("/v1/completions", headers=asks).headers["access-control-allow-origin"]
        == PAGE
    )
    answer = tiny_graph.http.post("/v1/completions", json=TEXT, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE
    other = tiny_graph.http.post("/v1/completions", json=TEXT, headers={"origin": "https://other.org"})
    assert "access-control-allow-origin" not in other.headers


def test_a_body_may_be_gzip_and_begin_with_a_byte_order_mark(tiny_graph: ServeGraph) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(TEXT | {"opts": 1}).encode()
    zipped = tiny_graph.http.post(
        "/v1/completions", content=gzip.compress(body), headers={"content-encoding": "gzip"}
    )
    assert zipped.status_code == 200, zipped.text
    assert zipped.headers["x-kvbeacon-ignored-fields"] == "opts"
    bomb = gzip.compress(bytes(10**7))
    answer = tiny_graph.http.post("/v1/completions", content=bomb, headers={"content-encoding": "gzip"})
    refused(answer, 413, code="request_too_large")
    answer = tiny_graph.http.post("/v1/completions", content=body, headers={"content-encoding": "br"})
    refused(answer, 415, code="unsupported_encoding")


def test_a_model_has_several_names(tiny_graph: ServeGraph) -> None:
    assert [each["id"] for each in tiny_graph.get("/v1/models")["data"]] == ["tiny", "tiny-alias"]
    answer = tiny_graph.http.post("/v1/completions", json=TEXT | {"model": "tiny-alias"})
    assert (answer.status_code, answer.json()["model"]) == (200, "tiny")


def test_header_bytes_that_arent_ascii(tiny_graph: ServeGraph) -> None:
    where = urlsplit(tiny_graph.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Name: \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"x-name: bytes that aren't ASCII" in answer
