"""The server answers what predict.py prints, whatever is sent to it, and ends cleanly."""

import base64
import csv
import io
import json
import os
import re
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import forked
import httpx
import numpy as np
import pytest
from PIL import Image

from conftest import QUESTIONS, Bake, Project, Run, by, by_variant
from data_files import digits, scenes

pytestmark = pytest.mark.slow
Train = Callable[[str], Run]
KINDS = {name: row["serve"].removesuffix(".py") for name, row in QUESTIONS["_variants"].items()}


@dataclass
class Server:
    """A running server."""

    url: str
    pid: int
    temporary: Path
    wait: Callable[[], int]

    def post(self, **content: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", timeout=60, **content)

    def memory(self) -> int:
        """Resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()


@contextmanager
def serving(project: Project, checkpoint: Path, folder: Path, *flags: str) -> Iterator[Server]:
    """Serve a checkpoint from a process that has imported PyTorch; nothing may be left in its temporary folder."""
    temporary = folder / "tmp"
    temporary.mkdir()
    script, rest, elsewhere, environment = project._prepare(
        ("training/serve.py", "--port=0", "--ckpt_path", checkpoint, *flags), {"TMPDIR": str(temporary)}
    )
    os.mkfifo(folder / "stdout")
    process = forked.start(script, rest, elsewhere, environment, folder)

    def wait() -> int:
        process.join(30)
        assert process.exitcode is not None, "the server does not end"
        return process.exitcode

    try:
        with open(folder / "stdout", encoding="utf-8") as stdout:
            found = re.search(r"http\S+", line := stdout.readline())
            assert found and str(checkpoint) in line and process.pid, (folder / "stderr").read_text(encoding="utf-8")
            yield Server(found[0], process.pid, temporary, wait)
            assert [path.name for path in temporary.iterdir() if path.name.startswith("serve-")] == []
            assert (folder / "stderr").read_text(encoding="utf-8") == ""
    finally:
        process.kill()
        process.join()


def make_inputs(kind: str, folder: Path) -> tuple[dict[str, Any], list[str], str]:
    """A request in which the second of four inputs is wrong, the good ones for predict.py, and a part of the error."""
    good: list[str] = []
    if kind in ("pictures", "boxes", "masks"):
        pictures = digits(28)[0] if kind == "pictures" else [pixels for pixels, _ in scenes(3)]
        for i in range(3):
            Image.fromarray(pictures[i]).save(folder / f"{i}.png")
            good.append(str(folder / f"{i}.png"))
        wrong = ("../wrong.png", b"no picture")
        contents = [(Path(file).name, Path(file).read_bytes()) for file in good]
        files = [("files", each) for each in (contents[0], wrong, *contents[1:])]
        return {"files": files}, good, "../wrong.png is not a readable picture"
    if kind == "texts":
        (folder / "secret.txt").write_text("secret", encoding="utf-8")
        texts = ["Der Löwe\nund das Brot", str(folder / "secret.txt"), "-"]
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        return {"json": {"texts": [texts[0], 5, *texts[1:]]}}, [str(folder / "texts.json")], "item 1 is not a text"
    if kind == "rows":
        rows: list[dict[str, Any]] = [
            {"width": 10.5, "length": 1e6, "colour": "red", "row": 1, "unit": "cm"},
            {"width": None, "length": 990000, "colour": "unseen", "row": 2, "unit": "cm"},
            {"width": "9.25", "length": 1.1e6, "colour": "", "row": 3, "unit": "cm"},
        ]
        with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        wrong_row = rows[0] | {"width": "wide"}
        return {"json": {"rows": [rows[0], wrong_row, *rows[1:]]}}, [str(folder / "rows.csv")], "'width' is 'wide'"
    for i in range(3):
        lines = [f"{date(2000, 1, 1) + timedelta(weeks=n)},{i + n % 12 + n / 10}" for n in range(120)]
        (folder / f"{i}.csv").write_text("\n".join(["date,co2", *lines]), encoding="utf-8")
        good.append(str(folder / f"{i}.csv"))
    contents = [(Path(file).name, Path(file).read_bytes()) for file in good]
    wrong = ("wrong.csv", contents[0][1].replace(b",1", b",x"))
    return {"files": [("files", each) for each in (contents[0], wrong, *contents[1:])]}, good, "wrong.csv has errors"


@by_variant
def test_server_answers_what_predict_prints(bake: Bake, train: Train, variant: str, tmp_path: Path) -> None:
    kind, best = KINDS[variant], train(variant).best
    project = bake(variant=variant, serving="fastapi")
    request, good, problem = make_inputs(kind, tmp_path)
    flags = [f"--output={tmp_path / 'masks'}"] if kind == "masks" else []
    printed = project.run("training/predict.py", *good, "--ckpt_path", best, "--format=json", *flags).stdout
    expected = json.loads(printed)
    with serving(project, best, tmp_path) as server:
        answer = server.post(**request)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [bool(result["error"]) for result in results] == [False, True, False, False]
        assert problem in results[1]["error"] and str(server.temporary) not in results[1]["error"]
        check_description(httpx.get(f"{server.url}/openapi.json").json(), kind, results[0])
        rows = [row for result in results for row in result["predictions"]]
        assert len(rows) == len(expected)
        for row, other in zip(rows, expected, strict=True):
            if kind != "texts":
                assert row.pop("input") != other.pop("input")
            if kind == "masks":
                shown = Image.open(io.BytesIO(base64.b64decode(row.pop("mask").partition(",")[2])))
                written = Image.open(other.pop("mask"))
                assert shown.tobytes() == written.tobytes() and shown.getpalette() == written.getpalette()
        assert rows == expected
        health = httpx.get(f"{server.url}/health").json()
        assert best.as_posix().endswith(health["checkpoint"]) and health["versions"].keys() >= {"torch", "lightning"}
        alone = {name: content[1:2] if name == "files" else {k: v[1:2] for k, v in content.items()}
                 for name, content in request.items()}  # fmt: skip
        refused = server.post(**alone)
        assert refused.status_code == 422 and problem in refused.json()["detail"]
        assert server.stop() == 143


def check_description(api: dict[str, Any], kind: str, result: dict[str, Any]) -> None:
    """The description of the interface has the types of request and answer."""
    operation, schemas = api["paths"]["/predict"]["post"], api["components"]["schemas"]
    ((media, content),) = operation["requestBody"]["content"].items()
    assert media == ("application/json" if kind in ("texts", "rows") else "multipart/form-data")
    body = schemas[content["schema"]["$ref"].split("/")[-1]]["properties"]
    assert list(body) == [kind if kind in ("texts", "rows") else "files"]
    if kind == "rows":
        assert body["rows"]["items"]["properties"].keys() == {"width", "length", "colour"}
    assert operation["responses"].keys() == {"200", "413", "422", "503", "504"}
    item = schemas["Result"]["properties"]["predictions"]["items"]["$ref"].split("/")[-1]
    columns = {"input", *result["predictions"][0]} if result["predictions"] else set()
    assert columns <= schemas[item]["properties"].keys()
    if columns:
        assert set(schemas[item]["required"]) <= columns


def png_bomb(side: int) -> bytes:
    """A PNG file of a few kilobytes with side x side black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0))
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.xdist_group("digits-cnn")
def test_hostile_pictures_are_refused_in_a_sentence(bake: Bake, train: Train, tmp_path: Path) -> None:
    project = bake(serving="fastapi")

    def written() -> list[Path]:
        return sorted(each for each in project.path.rglob("*") if "cache" not in str(each.relative_to(project.path)))

    before = written()
    with serving(project, train("digits-cnn").best, tmp_path, "--max_megabytes=2") as server:
        content = {
            "bomb.png": png_bomb(30_000),
            "../../../etc/passwd": b"root",
            "a" * 5000: b"",
            "nul\0.png": b"\x89PNG\r\n\x1a\n",
            "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n",
        }
        memory = server.memory()
        for name, data in content.items():
            refused(server.post(files=[("files", (name, data))]))
        assert server.memory() < memory + 100_000_000
        refused(server.post(files=[("files", ("a.png", b"x"))] * 65), 413)
        refused(server.post(content=b"x" * 3_000_000), 413)
        multipart = {"Content-Type": "multipart/form-data; boundary=x"}
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        refused(server.post(content=iter([part, *[b"x" * 1_000_000] * 3]), headers=multipart), 413)
        refused(server.post(content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"}))
        refused(server.post(content=b"--x", headers={"Content-Type": "multipart/form-data"}))
        refused(server.post(json={"files": ["/etc/passwd"]}))
        assert httpx.get(f"{server.url}/../../etc/passwd").status_code == 404
        for path in ("/health", "/"):
            assert httpx.get(f"{server.url}{path}").status_code == 200
            head = httpx.head(f"{server.url}{path}")
            assert head.status_code == 200 and head.content == b""
        assert server.stop() == 143
    assert written() == before


@pytest.mark.xdist_group("tabular")
def test_hostile_json_is_refused_in_a_sentence(bake: Bake, train: Train, tmp_path: Path) -> None:
    project, run = bake(variant="tabular", serving="fastapi"), train("tabular")
    with serving(project, run.best, tmp_path, "--max_megabytes=2") as server:
        headers = {"Content-Type": "application/json"}
        for body in (
            b"[" * 1_000_000,
            b'{"rows": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
            b'{"rows": [{"width": "\xff\xfe"}]}',
            b'{"rows": [{"width": ' + b"9" * 10_000 + b"}]}",
            b'{"rows": [{"width": 1, "length": Infinity, "colour": "red"}]}',
            b'{"rows": [{"width": "\\ud800", "length": 1, "colour": "red"}]}',
            b'{"rows": [{"width": {"a": 1}, "length": 1, "colour": "red"}]}',
            b'{"rows": []}',
            b'{"rows": 3}',
            b"{",
            b"",
        ):
            refused(server.post(content=body, headers=headers))
        refused(server.post(content=b'{"rows": [' + b"1," * 1_500_000 + b"1]}", headers=headers), 413)
        refused(server.post(json={"rows": [{}] * 65}), 413)
        row = {"width": 1, "length": 1, "colour": "x" * 1_000_000}
        assert server.post(json={"rows": [row]}).status_code == 200
        assert server.stop() == 143


def refused(response: httpx.Response, status: int | None = None) -> None:
    """Assert that a request was refused with a status of the 400s and one sentence."""
    assert response.status_code == status or (status is None and 400 <= response.status_code < 500), response.text
    assert isinstance(response.json()["detail"], str) and response.json()["detail"]
    assert "Traceback" not in response.text and "/tmp" not in response.text


@pytest.mark.xdist_group("digits-cnn")
def test_thousand_requests_get_right_answers_and_leave_nothing(bake: Bake, train: Train, tmp_path: Path) -> None:
    """From 16 clients, a tenth of the requests wrong; then SIGTERM lets the running requests finish."""
    pictures = []
    for i in range(20):
        content = io.BytesIO()
        Image.fromarray(digits(28)[0][i]).save(content, "PNG")
        pictures.append(content.getvalue())
    with serving(bake(serving="fastapi"), train("digits-cnn").best, tmp_path) as server:
        expected = [server.post(files=[("files", ("a", each))]).json()["results"] for each in pictures]
        with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=16)) as client:

            def ask(i: int) -> bool:
                data = b"wrong" if i % 10 == 0 else pictures[i % 20]
                answer = client.post(f"{server.url}/predict", files=[("files", ("a", data))])
                return answer.status_code == 422 if i % 10 == 0 else answer.json()["results"] == expected[i % 20]

            with ThreadPoolExecutor(16) as pool:
                assert all(pool.map(ask, range(200)))  # memory is still being reserved
                before = server.memory()
                assert all(pool.map(ask, range(1000)))
                growth = server.memory() - before
                print(f"resident memory: {before / 1e6:.0f} MB before, {(before + growth) / 1e6:.0f} MB after")
                assert growth < 30_000_000
                received = Event()

                def slow() -> Iterator[bytes]:
                    yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
                    received.set()
                    stopped.wait(30)
                    yield pictures[0] + b"\r\n--x--\r\n"

                stopped = Event()
                headers = {"Content-Type": "multipart/form-data; boundary=x"}
                running = pool.submit(client.post, f"{server.url}/predict", content=slow(), headers=headers)
                assert received.wait(30)
                os.kill(server.pid, signal.SIGTERM)
                # a connection that waited in the backlog is closed without an answer
                with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                    while True:
                        httpx.get(f"{server.url}/health")
                stopped.set()
                assert running.result().json()["results"] == expected[0]
        assert server.wait() == 143
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.xdist_group("digits-cnn")
def test_requests_beyond_the_limits_are_refused_with_the_reason(bake: Bake, train: Train, tmp_path: Path) -> None:
    flags = ("--max_requests=1", "--timeout=2", "--max_inputs=2")
    with serving(bake(serving="fastapi"), train("digits-cnn").best, tmp_path, *flags) as server:
        received, answered = Event(), Event()

        def slow() -> Iterator[bytes]:
            yield b"--x\r\n"
            received.set()
            answered.wait(30)
            yield b"--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(server.post, content=slow(), headers=headers)
            assert received.wait(30)
            busy = server.post(files=[("files", ("a", b"x"))])
            assert busy.status_code == 503 and "limit of 1 " in busy.json()["detail"]
            assert httpx.get(f"{server.url}/health").status_code == 200
            while server.post(files=[("files", ("a", b"x"))]).status_code == 503:
                pass
            answered.set()
            assert isinstance(running.exception(), httpx.HTTPError) or running.result().status_code == 504
        refused(server.post(files=[("files", ("a", b"x"))] * 3), 413)
        assert server.stop() == 143


@pytest.mark.xdist_group("digits-cnn")
def test_port_in_use_is_reported_in_a_sentence(bake: Bake, train: Train, tmp_path: Path) -> None:
    with serving(bake(serving="fastapi"), train("digits-cnn").best, tmp_path) as server:
        port, best = server.url.rstrip("/").rpartition(":")[2], train("digits-cnn").best
        done = bake(serving="fastapi").run("training/serve.py", "--port", port, "--ckpt_path", best, status=1)
        assert re.fullmatch(rf"error: cannot listen on 127.0.0.1, port {port}: .*\n", done.stderr)
        assert server.stop() == 143


@pytest.mark.xdist_group("digits-cnn")
def test_unusable_host_is_reported_in_a_sentence(bake: Bake, train: Train) -> None:
    flags = ["--port=0", "--host=no.such.host.invalid", f"--ckpt_path={train('digits-cnn').best}"]
    done = bake(serving="fastapi").run("training/serve.py", *flags, status=1)
    assert re.fullmatch(r"error: cannot listen on no.such.host.invalid, port 0: .*--host.*\n", done.stderr)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.xdist_group("digits-cnn")
def test_printed_ipv6_address_can_be_opened(bake: Bake, train: Train, tmp_path: Path) -> None:
    with serving(bake(serving="fastapi"), train("digits-cnn").best, tmp_path, "--host=::1") as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.stop() == 143


def read_picture(url: str) -> Image.Image:
    """The picture in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def check_drawing(canvas: Image.Image, picture: Image.Image, predictions: list[dict[str, Any]]) -> None:
    """Assert that a canvas shows a picture with the predicted boxes or mask on it, and nothing else."""
    scale = canvas.width // picture.width
    plain = picture.convert("RGB").resize(canvas.size, Image.Resampling.NEAREST)
    changed = (np.asarray(canvas.convert("RGB")) != np.asarray(plain)).any(-1)
    inside = np.zeros_like(changed)
    for row in predictions:
        if row.get("mask"):
            mask = read_picture(row["mask"]).convert("RGBA").resize(canvas.size, Image.Resampling.NEAREST)
            inside |= np.asarray(mask)[..., 3] > 0
        elif "bbox" in row and row["score"] >= 0.5:
            left, top, width, height = (each * scale for each in row["bbox"])
            x, y = int(left + width / 2), int(top + height)
            assert changed[max(y - 2, 0) : y + 2, min(x, canvas.width - 1)].any(), row
            inside[max(int(top) - 22, 0) : y + 4, max(int(left) - 4, 0) : int(left + max(width, 200)) + 4] = True
    assert changed.any() == inside.any()
    assert not changed[~inside].any()


@by(["digits-cnn", "detection", "segmentation", "text-transformer", "tabular", "forecast"])
def test_page_shows_predictions(bake: Bake, train: Train, browser: Any, variant: str, tmp_path: Path) -> None:
    kind, best = KINDS[variant], train(variant).best
    request, good, _ = make_inputs(kind, tmp_path)
    with serving(bake(variant=variant, serving="fastapi"), best, tmp_path) as server:
        page, errors, requested = browser.new_page(), [], []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(server.url)
        if kind == "texts":
            page.fill("textarea", "Der Löwe")
            page.click("button")
        elif kind == "rows":
            page.wait_for_selector("button")
            page.fill("input >> nth=0", "10.5")
            page.click("button")
        else:
            page.set_input_files("input", good[:2])
        page.wait_for_selector("#results table" if kind != "boxes" else "#results section")
        if kind in ("pictures", "boxes", "masks"):
            page.wait_for_selector("canvas[data-drawn]")
        shown = page.inner_text("#results")
        answer = server.post(**{name: content[:1] if name == "files" else content for name, content in request.items()})
        for name, value in (answer.json()["results"][0]["predictions"] or [{}])[0].items():
            if name in ("class", "classes", "column") and kind not in ("texts", "rows"):
                assert value in shown
        if kind in ("boxes", "masks"):
            url = page.eval_on_selector("canvas", "canvas => canvas.toDataURL()")
            check_drawing(read_picture(url), Image.open(good[0]), answer.json()["results"][0]["predictions"])
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        page.goto(f"{server.url}/docs")
        page.click("text=/predict")
        page.wait_for_selector("text=No input can be read.")
        assert errors == []
        assert all(url.startswith((server.url, "data:", "blob:")) for url in requested), requested
        page.close()
        assert server.stop() == 143
