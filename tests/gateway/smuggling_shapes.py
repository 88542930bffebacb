"""Requests that two servers may read differently, and how the gateway answers each.

    AIOHTTP_NO_EXTENSIONS=1 python smuggling_shapes.py

prints which shapes aiohttp's parser in Python lets through, as JSON; with its parser in C the tests check every answer.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import NamedTuple

from gateway_fakes import FakeNode
from gateway_shop import open_shop

from mesh.config import GatewaySettings, MeshSettings, Settings
from mesh.gateway import app
from mesh.gateway.server import Gateway

HOST = b"Host: localhost\r\n"
GET = b"GET /hello/x HTTP/1.1\r\n" + HOST
POST = b"POST /measure HTTP/1.1\r\n" + HOST
#: A request that must not be answered when it is inside of another one, or behind one that is refused.
HIDDEN = b"GET /hello/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
#: Its answer. (An error may quote the request.)
SMUGGLED = b"Hello, smuggled"
#: A request after all others. Its answer shows that nothing is left over.
LAST = b"GET /hello/last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"


class Shape(NamedTuple):
    """Attributes:
    answers: the statuses. A refused request has one answer, and then the connection ends; for the others LAST is sent
        behind it and answered, too.
    """

    name: str
    data: bytes
    answers: tuple[int, ...] = (400,)
    refused: bool = True


def read(name: str, data: bytes, *answers: int) -> Shape:
    """A shape that is read as these requests."""
    return Shape(name, data, answers or (200,), refused=False)


def _te(value: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    return POST + b"Transfer-Encoding:" + value + b"\r\n\r\n" + body + HIDDEN


def _cl(value: bytes, body: bytes = b"abc") -> bytes:
    return POST + b"Content-Length:" + value + b"\r\n\r\n" + body + HIDDEN


def _field(line: bytes) -> bytes:
    return GET + line + b"\r\n\r\n" + HIDDEN


def _target(line: bytes, host: bytes = b"localhost") -> bytes:
    return line + b"\r\nHost: " + host + b"\r\n\r\n" + HIDDEN


SHAPES = [
    # --- Content-Length and Transfer-Encoding
    Shape("CL.TE", POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    Shape("TE.CL", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + HIDDEN),
    Shape("CL.0", GET + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN),
    Shape("TE: identity and CL", POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc" + HIDDEN),
    # --- Transfer-Encoding, obfuscated
    Shape("TE unknown", _te(b" xchunked")),
    Shape("TE vertical tab", _te(b" \x0bchunked")),
    Shape("TE form feed", _te(b" chunked\x0c")),
    Shape("TE folded", _te(b"\r\n chunked")),
    Shape("TE quoted", _te(b' "chunked"')),
    Shape("TE empty", _te(b"", b"")),
    Shape("TE identity", _te(b" identity", b"")),
    Shape("TE trailing comma", _te(b" chunked,")),
    Shape("TE with a parameter", _te(b" chunked;a=b")),
    Shape("TE chunked twice in a list", _te(b" chunked, chunked")),
    Shape("TE chunked not last", _te(b" chunked, identity")),
    Shape("TE gzip, chunked", _te(b" gzip, chunked", ABC), (415,)),
    Shape("TE NUL", _te(b" chunked\0")),
    Shape("TE twice", _te(b" chunked\r\nTransfer-Encoding: identity")),
    Shape("TE twice the same", _te(b" chunked\r\nTransfer-Encoding: chunked")),
    Shape("TE with a space before the colon", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN),
    Shape("TE with a leading space", POST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN),
    Shape("TE behind a bare LF", POST + b"X: X\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN),
    Shape("TE behind a bare CR", POST + b"X: X\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN),
    Shape("TE in HTTP/1.0", CHUNKED.replace(b"1.1", b"1.0") + ABC + HIDDEN),
    Shape(
        "TE in HTTP/1.0, kept alive",
        b"POST /measure HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + ABC + HIDDEN,
    ),
    read("TE behind a tab", POST + b"Transfer-Encoding:\tchunked\r\n\r\n" + ABC),
    read("TE in capitals", POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n" + ABC),
    read(
        "TE with an underscore is another field", POST + b"Transfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc"
    ),
    # --- Content-Length
    Shape("CL twice", _cl(b" 3\r\nContent-Length: 4")),
    Shape("CL twice the same", _cl(b" 3\r\nContent-Length: 3")),
    Shape("CL list", _cl(b" 3, 3")),
    Shape("CL plus", _cl(b" +3")),
    Shape("CL minus", _cl(b" -3")),
    Shape("CL hex", _cl(b" 0x3")),
    Shape("CL inner space", _cl(b" 3 4")),
    Shape("CL fraction", _cl(b" 3.0")),
    Shape("CL exponent", _cl(b" 3e0")),
    Shape("CL underscore", _cl(b" 1_0", b"abcdefghij")),
    Shape("CL empty", _cl(b"", b"")),
    Shape("CL other digits", _cl(" ٣".encode())),
    Shape("CL over 64 bits", _cl(b" 18446744073709551619")),
    Shape("CL with a space before the colon", POST + b"Content-Length : 3\r\n\r\nabc" + HIDDEN),
    Shape("CL with a soft hyphen", POST + b"Content\xadLength: 3\r\n\r\nabc" + HIDDEN),
    read("CL with spaces around", POST + b"Content-Length:  3 \r\n\r\nabc"),
    read("CL with zeros in front", POST + b"Content-Length: 0003\r\n\r\nabc"),
    read("CL as an option of the connection", POST + b"Connection: Content-Length\r\nContent-Length: 3\r\n\r\nabc"),
    # --- chunks
    Shape("chunk over 64 bits", CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk of many digits", CHUNKED + b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk minus", CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk plus", CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk 0x", CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk underscore", CHUNKED + b"0_3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk space in front", CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk space behind", CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk without a size", CHUNKED + b"\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk size ends in LF", CHUNKED + b"3\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk data ends in LF", CHUNKED + b"3\r\nabc\n0\r\n\r\n" + HIDDEN),
    Shape("chunk data ends in nothing", CHUNKED + b"3\r\nabcXX0\r\n\r\n" + HIDDEN),
    Shape("chunk shorter than its data", CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk extension with LF", CHUNKED + b"3;a\nx\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk extension with CR", CHUNKED + b"3;a\rx\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    Shape("chunk extension with quoted LF", CHUNKED + b'3;a="\n"\r\nabc\r\n0\r\n\r\n' + HIDDEN),
    Shape("last chunk ends in LF", CHUNKED + b"3\r\nabc\r\n0\r\n\n" + HIDDEN),
    Shape("last chunk ends in CR", CHUNKED + b"3\r\nabc\r\n0\r\n\r" + HIDDEN),
    read("chunk extension", CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n"),
    read("chunk with zeros in front", CHUNKED + b"0" * 40 + b"3\r\nabc\r\n0\r\n\r\n"),
    # --- trailers
    Shape("trailer Content-Length", CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n" + HIDDEN),
    Shape("trailer Transfer-Encoding", CHUNKED + b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n" + HIDDEN),
    Shape("trailer Host", CHUNKED + b"3\r\nabc\r\n0\r\nHost: localhost\r\n\r\n" + HIDDEN),
    Shape("trailer without a colon", CHUNKED + b"3\r\nabc\r\n0\r\nnothing\r\n\r\n" + HIDDEN),
    Shape("trailers without end", CHUNKED + b"3\r\nabc\r\n0\r\n" + b"X: b\r\n" * 500 + b"\r\n" + HIDDEN, (431,)),
    Shape("trailer too long", CHUNKED + b"3\r\nabc\r\n0\r\nX: " + b"b" * 9000 + b"\r\n\r\n" + HIDDEN, (431,)),
    read("trailer", CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"),
    # --- line ends and header fields
    Shape("bare LF everywhere", GET.replace(b"\r\n", b"\n") + b"\n" + HIDDEN),
    Shape("bare LF at the end of the head", GET + b"\n" + HIDDEN),
    Shape("bare CR at the end of the head", GET + b"\r" + HIDDEN),
    Shape("CR CR LF", GET[:-2] + b"\r\r\n\r\n" + HIDDEN),
    Shape("LF CR", GET[:-2] + b"\n\r\n\r" + HIDDEN),
    Shape("CR in a value", _field(b"X: a\rb")),
    Shape("LF in a value", _field(b"X: a\nb")),
    Shape("NUL in a value", _field(b"X: a\0b")),
    Shape("control character in a value", _field(b"X: \x01")),
    Shape("obs-fold", _field(b"X: a\r\n b")),
    Shape("obs-fold of the first field", b"GET /hello/x HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n" + HIDDEN),
    Shape("space before the colon", _field(b"X : a")),
    Shape("tab before the colon", _field(b"X\t: a")),
    Shape("no name", _field(b": a")),
    Shape("no colon", _field(b"Xa")),
    Shape("NUL in a name", _field(b"X\0: a")),
    Shape("parentheses in a name", _field(b"X(a): b")),
    Shape("high bytes in a name", _field(b"X\xc3\xa9: b")),
    # --- request lines
    Shape("space in the target", _target(b"GET /hello/x y HTTP/1.1")),
    Shape("tabs in the request line", _target(b"GET\t/hello/x\tHTTP/1.1")),
    Shape("space behind the version", _target(b"GET /hello/x HTTP/1.1 ")),
    Shape("space before the method", b" " + GET + b"\r\n" + HIDDEN),
    Shape("NUL in the target", _target(b"GET /hello/\0x HTTP/1.1")),
    Shape("high bytes in the target", _target(b"GET /hello/\xc3\xa9 HTTP/1.1")),
    Shape("fragment", b"GET /hello/x#y HTTP/1.1\r\n" + HOST + b"\r\n"),
    Shape("no slash", _target(b"GET hello/x HTTP/1.1")),
    Shape("backslash", _target(b"GET \\hello\\x HTTP/1.1")),
    Shape("method in lower case", _target(b"get /hello/x HTTP/1.1")),
    Shape("odd method", _target(b"G@T /hello/x HTTP/1.1")),
    Shape("CONNECT", _target(b"CONNECT localhost:22 HTTP/1.1")),
    read("empty lines in front", b"\r\n\r\n" + GET + b"\r\n"),
    # --- hosts
    Shape("no Host", b"GET /hello/x HTTP/1.1\r\n\r\n" + HIDDEN),
    Shape("Host twice", GET + b"Host: 127.0.0.1\r\n\r\n" + HIDDEN),
    Shape("Host folded", b"GET /hello/x HTTP/1.1\r\nHost:\r\n localhost\r\n\r\n" + HIDDEN),
    read("Host with a path", _target(b"GET /hello/x HTTP/1.1", b"localhost/x"), 400, 200),
    read("Host list", _target(b"GET /hello/x HTTP/1.1", b"localhost, 127.0.0.1"), 400, 200),
    read("absolute form for another host", _target(b"GET http://evil.example/hello/x HTTP/1.1"), 421, 200),
    read("absolute form that contradicts Host", _target(b"GET http://127.0.0.1/hello/x HTTP/1.1"), 400, 200),
    read("absolute form with user information", _target(b"GET http://a@localhost/hello/x HTTP/1.1"), 400, 200),
    read("absolute form", _target(b"GET http://localhost:80/hello/x HTTP/1.1"), 200, 200),
    # --- versions and other protocols
    Shape("HTTP/0.9", b"GET /hello/x\r\n\r\n", (505,)),
    Shape("HTTP/0.9 with more behind it", b"GET /hello/x\r\n\r\n" + HIDDEN),
    Shape("HTTP/1.2", _target(b"GET /hello/x HTTP/1.2"), (505,)),
    Shape("HTTP/2.0", GET.replace(b"1.1", b"2.0") + b"\r\n", (505,)),
    Shape("HTTP/2.0 with more behind it", _target(b"GET /hello/x HTTP/2.0")),
    Shape("HTTP/01.1", _target(b"GET /hello/x HTTP/01.1")),
    Shape("HTTP/1.10", _target(b"GET /hello/x HTTP/1.10")),
    Shape("http/1.1", _target(b"GET /hello/x http/1.1")),
    Shape("preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    Shape("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\r\n\r\n" * 4),
    Shape("upgrade to h2c", GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + HIDDEN, (200,)),
    Shape(
        "upgrade to h2c with a body",
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc" + HIDDEN,
        (200,),
    ),
    Shape(
        "upgrade to WebSocket that is declined",
        GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n" + HIDDEN,
        (405,),
    ),
    # --- bodies
    Shape("garbage behind a body", POST + b"Content-Length: 3\r\n\r\nabcGARBAGE\r\n\r\n" + HIDDEN, (400,)),
    read("GET with a body", GET + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN),
    read(
        "GET with chunks",
        GET + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
    ),
    read(
        "OPTIONS with a body",
        b"OPTIONS /hello/x HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        204,
    ),
    read("two requests", GET + b"\r\n" + HIDDEN, 200, 200),
    read("Expect", POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
    read("Expect in capitals", POST + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc"),
    read("Expect something else", POST + b"Expect: 200-maybe\r\nContent-Length: 3\r\n\r\nabc"),
    read("Expect without a body", GET + b"Expect: 100-continue\r\n\r\n"),
    Shape(
        "Expect with contradicting lengths",
        POST + b"Expect: 100-continue\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + ABC + HIDDEN,
    ),
]

#: What aiohttp's parser in Python reads differently from that in C: more leniently, or ignoring trailers.
LENIENT_IN_PYTHON = {
    "chunk extension with CR",
    "method in lower case",
    "high bytes in the target",
    "trailer Content-Length",
    "trailer Transfer-Encoding",
    "trailer Host",
}


async def answers(address: tuple[str, int], shape: Shape, patience_s: float = 5.0) -> tuple[list[int], bytes, bool]:
    """Send a shape: the statuses of the answers, all that was received, and whether the connection ended."""
    reader, writer = await asyncio.open_connection(*address)
    received = b""
    try:
        writer.write(shape.data if shape.refused else shape.data + LAST)
        await writer.drain()
        async with asyncio.timeout(patience_s):
            while data := await reader.read(65536):
                received += data
        ended = True
    except ConnectionError:
        ended = True
    except TimeoutError:
        ended = False
    finally:
        writer.close()
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3})", received)], received, ended


async def main() -> None:
    node = FakeNode()
    open_shop(node)
    settings = Settings(mesh=MeshSettings(host="testhost"), gateway=GatewaySettings(port=0))
    server = Gateway(node, settings).make_server()
    listener = app.bind("127.0.0.1", 0)
    accepting = await asyncio.get_running_loop().create_server(server, sock=listener)
    found = {}
    refused = [shape for shape in SHAPES if shape.refused]
    told = await asyncio.gather(*(answers(listener.getsockname(), shape, 1.5) for shape in refused))
    for shape, (statuses, received, _) in zip(refused, told, strict=True):
        if SMUGGLED in received:
            found[shape.name] = statuses
    print(json.dumps(found))
    accepting.close()
    await server.shutdown(0.2)


if __name__ == "__main__":
    asyncio.run(main())
