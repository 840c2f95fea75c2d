"""`acs data` against a server of this machine that misbehaves on request."""

import errno
import hashlib
import io
import json
import os
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from acs_lib import paths
from acs_lib.cli import app
from acs_lib.datasets import download
from acs_lib.profiles import load_profile

COCO128 = Path(os.environ.get("ACS_COCO128") or Path(__file__).parents[2] / "shared" / "coco128")
FIRST = load_profile("paper-first-3")
BROKEN_OFF = 3000  # bytes that come before a connection breaks off


class Server(ThreadingHTTPServer):
    """Serves `files` (address -> bytes). `faults` holds for an address what happens to its next requests: a status to
    answer with, or 'stop' to break off after BROKEN_OFF bytes. `asked` lists (address, first byte, user agent)."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, {}, []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def images_asked(self) -> set[str]:
        return {Path(address).name for address, *_ in self.asked if address.endswith(".jpg")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        address = self.path.lstrip("/")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.asked.append((address, start, self.headers["User-Agent"]))
        fault = (self.server.faults.get(address) or [None]).pop(0)
        content = self.server.files.get(address)
        if isinstance(fault, int) or content is None:
            self.send_error(fault or 404)
            return
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + BROKEN_OFF] if fault == "stop" else content[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def picture(seed: int, width: int, height: int) -> bytes:
    """A JPEG of noise, a few times BROKEN_OFF bytes long."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def drawn() -> tuple[dict, dict[str, bytes]]:
    """Annotations and images where there are no photographs: three objects an image, one of each size."""
    boxes = {1: [2, 2, 8, 8], 2: [20, 20, 25, 20], 3: [40, 40, 60, 50]}
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 120, "height": 100} for n in range(20)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("cat", "dog", "car"), 1)],
        "annotations": [
            {"id": 10 * n + category, "image_id": n, "category_id": category, "bbox": box}
            for n in range(20)
            for category, box in boxes.items()
        ],
    }
    return content, {image["file_name"]: picture(image["id"], 120, 100) for image in content["images"]}


@pytest.fixture(scope="session")
def photographs() -> tuple[dict, dict[str, bytes]]:
    """(annotations, file name -> JPEG): the photographs of coco128, or drawn ones where these are not at hand."""
    file = COCO128 / "annotations" / "instances_train2017.json"
    if not file.is_file():
        return drawn()
    content = json.loads(file.read_text())
    images = {image["file_name"]: COCO128 / "train2017" / Path(image["file_name"]).name for image in content["images"]}
    return content, {name: path.read_bytes() for name, path in images.items()}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def coco(server, photographs, project, monkeypatch) -> Server:
    """COCO's address with the same images in both splits."""
    content, images = photographs
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("train", "val"):
            file.writestr(f"annotations/instances_{name}2017.json", json.dumps(content))
            server.files |= {f"{name}2017/{image}": jpeg for image, jpeg in images.items()}
    address = "annotations/annotations_trainval2017.zip"
    server.files[address] = archive.getvalue()
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    mirror = replace(download.SOURCES["coco"], base=server.base, annotations=(address, digest))
    monkeypatch.setitem(download.SOURCES, "coco", mirror)
    return server


def test_only_what_the_queries_need_is_fetched_and_nothing_twice(coco, project, photographs):
    funnels, outcome = download.get(FIRST, "coco")
    assert set(funnels) == {"train", "validation", "test"}
    assert funnels["train"].set_index("step")["count"]["images"] == len(photographs[0]["images"])
    there = sorted(path.relative_to(project / "data" / "coco") for path in outcome.there)
    on_disk = sorted(path.relative_to(project / "data" / "coco") for path in (project / "data" / "coco").rglob("*.jpg"))
    assert there == on_disk and not outcome.missing
    assert 3 <= len(on_disk) < len(photographs[0]["images"]) / 2
    for path in outcome.there:
        assert path.read_bytes() == coco.files[f"{path.parent.name}/{path.name}"]
    assert coco.images_asked() == {path.name for path in on_disk}
    assert all(agent.startswith("acs-kit/") for *_, agent in coco.asked)
    assert not list((project / "data").rglob("*.part")) and not list((project / "data").rglob("*.zip"))
    before = len(coco.asked)
    again = download.get(FIRST, "COCO")[1]
    assert len(coco.asked) == before and again.there == outcome.there


def some_image(coco) -> tuple[str, Path]:
    """(address, path) of an image that the test split needs."""
    path = next(path for path in sorted(download.get(FIRST, "coco")[1].there) if path.parent.name == "val2017")
    path.unlink()
    coco.asked.clear()
    return f"val2017/{path.name}", path


def asked_for(coco, address) -> list[int]:
    return [start for asked, start, _ in coco.asked if asked == address]


def test_a_broken_connection_goes_on_where_it_stopped(coco):
    address, path = some_image(coco)
    coco.faults[address] = ["stop", "stop"]
    assert path in download.get(FIRST, "coco")[1].there
    assert asked_for(coco, address) == [0, BROKEN_OFF, 2 * BROKEN_OFF]
    assert path.read_bytes() == coco.files[address]


def test_what_an_interrupted_run_left_is_used(coco):
    address, path = some_image(coco)
    path.with_name(path.name + ".part").write_bytes(coco.files[address][:1234])
    assert path in download.get(FIRST, "coco")[1].there
    assert asked_for(coco, address) == [1234] and path.read_bytes() == coco.files[address]
    path.rename(path.with_name(path.name + ".part"))  # stopped between the last byte and the renaming
    assert path in download.get(FIRST, "coco")[1].there and path.read_bytes() == coco.files[address]


def test_a_server_that_is_busy_is_asked_again(coco):
    address, path = some_image(coco)
    coco.faults[address] = [503, 429]
    assert path in download.get(FIRST, "coco")[1].there
    assert asked_for(coco, address) == [0, 0, 0]


def test_an_image_that_is_not_there_is_noted_and_the_rest_comes(coco):
    address, path = some_image(coco)
    del coco.files[address]
    _, outcome = download.get(FIRST, "coco")
    assert list(outcome.missing) == [path] and "404" in outcome.missing[path] and address in outcome.missing[path]
    assert outcome.there
    result = CliRunner().invoke(app, ["data", "coco", "--limit", "3"])
    assert result.exit_code == 1 and f"{path.name}: " in result.output and "Traceback" not in result.output


def test_a_damaged_image_is_fetched_anew_and_one_that_stays_damaged_is_not_kept(coco):
    address, path = some_image(coco)
    path.write_bytes(coco.files[address][:-2000])
    assert path in download.get(FIRST, "coco")[1].there and path.read_bytes() == coco.files[address]
    path.unlink()
    coco.files[address] = coco.files[address][:-2000]
    _, outcome = download.get(FIRST, "coco")
    assert "no whole image" in outcome.missing[path] and not path.exists()


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_at_the_first_image(coco, monkeypatch):
    _, path = some_image(coco)
    others = [other for other in path.parent.iterdir() if other.suffix == ".jpg"]
    for other in others:
        other.unlink()
    monkeypatch.setattr(download, "THREADS", 1)
    monkeypatch.setattr(download, "_stream", full)
    with pytest.raises(OSError, match="No space left on device: '.*val2017/.*jpg.part'"):
        download.get(FIRST, "coco")
    monkeypatch.setattr(download, "_stream", lambda *arguments: False)  # any other fault: the rest is tried
    assert len(download.get(FIRST, "coco")[1].missing) == len(others) + 1
    result = CliRunner().invoke(app, ["data", "coco", "--limit", "3"])
    assert result.exit_code == 1 and "Traceback" not in result.output


def test_a_damaged_image_in_a_linked_folder_is_left_as_it_is(coco, project, tmp_path):
    address, path = some_image(coco)
    mine = tmp_path / "mine"
    path.parent.rename(mine)
    download.link(FIRST, "coco", project / "data" / "coco" / "annotations" / "instances_val2017.json", mine)
    (mine / path.name).write_bytes(b"my own")
    outcome = download.get(FIRST, "coco")[1]
    assert "in a folder that is linked" in outcome.missing[mine / path.name]
    assert (mine / path.name).read_bytes() == b"my own" and not coco.asked
    assert len(outcome.missing) == 1 and outcome.there
    (mine / path.name).unlink()
    assert not download.get(FIRST, "coco")[1].missing and (mine / path.name).read_bytes() == coco.files[address]


def test_a_connection_that_always_breaks_off_is_given_up(coco, monkeypatch):
    address, path = some_image(coco)
    coco.faults[address] = ["stop"] * 100
    monkeypatch.setattr("test_download.BROKEN_OFF", 0)
    _, outcome = download.get(FIRST, "coco")
    assert "goes on from here" in outcome.missing[path] and len(asked_for(coco, address)) == download.STOPS


def test_annotations_that_are_not_the_published_ones_are_refused(coco, project):
    address = "annotations/annotations_trainval2017.zip"
    coco.files[address] = coco.files[address][:-1] + b"x"
    with pytest.raises(download.FetchError, match="has the SHA-256 .* nothing is kept"):
        download.get(FIRST, "coco")
    assert not [path for path in (project / "data").rglob("*") if path.is_file()]


def test_the_command_line_says_what_came_of_it(coco):
    result = CliRunner().invoke(app, ["data", "coco", "--limit", "2"])
    assert result.exit_code == 0, result.output
    assert "unambiguous" in result.output and "queries taken" in result.output and "CC BY 4.0" in result.output
    for arguments, cause in (
        (["data", "cocoa"], "choose one of coco, objects365"),
        (["data", "coco", "--profile", "smoke"], "no dataset 'coco' in the profile 'smoke'; it has none"),
        (["data", "coco", "--profile", "nonesuch"], "unknown profile"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1 and cause in result.output and "Traceback" not in result.output


def test_data_on_disk_are_linked_and_checked(project, photographs, tmp_path):
    content, images = photographs
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    annotations = tmp_path / "mine" / "instances_val2017.json"
    annotations.write_text(json.dumps(content))
    for name, jpeg in images.items():
        (tmp_path / "mine" / "pictures" / name).write_bytes(jpeg)
    arguments = ["--annotations", str(annotations), "--images", str(tmp_path / "mine" / "pictures"), "--limit", "3"]
    result = CliRunner().invoke(app, ["data", "coco", *arguments])
    assert result.exit_code == 0, result.output
    assert "queries taken" in result.output
    _, outcome = download.link(FIRST, "coco", annotations, tmp_path / "mine" / "pictures")
    first, second = sorted(outcome.there)[:2]
    assert first.parent == tmp_path / "mine" / "pictures", "where the run will read them"
    first.unlink()
    second.write_bytes(b"no image")
    _, outcome = download.link(FIRST, "coco", annotations, tmp_path / "mine" / "pictures")
    assert outcome.missing == {first: "not there", second: "damaged"}

    other = annotations.rename(annotations.with_name("instances_minival.json"))
    with pytest.raises(ValueError, match="reads instances_train2017.json, instances_val2017.json, not instances_mini"):
        download.link(FIRST, "coco", other, tmp_path / "mine" / "pictures")
    with pytest.raises(ValueError, match="there is no"):
        download.link(FIRST, "coco", annotations, tmp_path)
    (project / "data" / "objects365" / "val").mkdir(parents=True)
    (tmp_path / "zhiyuan_objv2_val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is there already; move it away"):
        download.link(FIRST, "objects365", tmp_path / "zhiyuan_objv2_val.json", tmp_path)


def objects365() -> tuple[dict, dict[str, bytes]]:
    """Annotations as Objects365 v2 writes them, defects included, and its archives."""
    names = [f"images/v{1 + n % 2}/patch{8 + 8 * (n % 2)}/objects365_v{1 + n % 2}_{n:08d}.jpg" for n in range(6)]
    names.append("images/v1/patch6/objects365_v1_00320532.jpg")  # in no archive
    names.append("images/v2/patch17/objects365_v2_00000099.jpg")  # beyond the limit of the profile
    content = {
        "images": [
            {"id": n, "file_name": name, "width": 120, "height": 100, "license": 5, "url": ""}
            for n, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "Awning "}, {"id": 2, "name": "Sneakers"}],
        "annotations": [],
    }
    for n in range(len(names)):
        row = {"image_id": n, "iscrowd": 0, "isfake": 0, "isreflected": 0, "area": 64.0}
        small = [112.5, 40.25, 15.0, 8.0] if n == 1 else [10.5, 40.25, 8.0, 8.0]  # one leaves the image
        content["annotations"] += [
            {**row, "id": 10 * n, "category_id": 1, "bbox": small},
            {**row, "id": 10 * n + 1, "category_id": 2, "bbox": [50.0, 50.0, 5.0, 5.0]},
            {**row, "id": 10 * n + 2, "category_id": 2, "bbox": [70.0, 50.0, 5.0, 5.0]},
        ]
        if n == 2:  # annotated twice, so not ambiguous
            content["annotations"].append({**content["annotations"][-3], "id": 10 * n + 3})
    archives = {}
    for patch in ("v1/patch8", "v2/patch16", "v2/patch17"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for n, name in enumerate(names):
                if patch in name and n != 5:
                    jpeg = picture(n, 120, 100)
                    info = tarfile.TarInfo(f"{Path(patch).name}/{Path(name).name}")
                    info.size = len(jpeg)
                    archive.addfile(info, io.BytesIO(jpeg))
            archive.addfile(tarfile.TarInfo("../../escaped.jpg"))
        archives[f"val/images/{patch}.tar.gz"] = buffer.getvalue()
    return content, archives


@pytest.fixture
def annotated(server, project, monkeypatch) -> dict:
    """The annotations of an Objects365 whose archives the server holds."""
    content, archives = objects365()
    text = json.dumps(content).encode()
    server.files |= {"val/zhiyuan_objv2_val.json": text, **archives}
    annotations = ("val/zhiyuan_objv2_val.json", hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(
        download.SOURCES, "objects365", replace(download.SOURCES["objects365"], annotations=annotations)
    )
    return content


def test_objects365_comes_out_of_its_archives_defects_and_all(server, project, annotated):
    content, profile = annotated, load_profile("paper-first-6")
    server.faults["val/images/v1/patch8.tar.gz"] = ["stop"]
    funnels, outcome = download.get(profile, "objects365", base=server.base)
    counts = funnels["test"].set_index("step")["count"]
    expected = {
        "images": 8, "instances": 25, "instances in the archives": 22, "annotated once": 21, "unambiguous": 7,
        "small": 7, "queries taken": 6,
    }  # fmt: skip
    assert counts[list(expected)].to_dict() == expected
    folder = project / "data" / "objects365" / "val"
    root = folder.resolve()
    assert {path.relative_to(root).as_posix() for path in outcome.there} == {
        image["file_name"] for image in content["images"][:5]
    }
    assert [path.name for path in outcome.missing] == ["objects365_v2_00000005.jpg"], "in no archive, it turned out"
    assert "does not hold it" in next(iter(outcome.missing.values()))
    asked = {address for address, *_ in server.asked if address.endswith(".tar.gz")}
    assert asked == {"val/images/v1/patch8.tar.gz", "val/images/v2/patch16.tar.gz"}, "patch17 is not needed"
    assert (server.asked[2][0], server.asked[2][1]) == ("val/images/v1/patch8.tar.gz", BROKEN_OFF)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(p.name for p in outcome.there)
    assert not list(project.parent.rglob("escaped.jpg"))

    asked_before = len(server.asked)
    (folder / "images" / "v1" / "patch8").rename(folder / "patch8")  # as the archives unpack
    _, again = download.get(profile, "objects365", base=server.base)
    assert len(again.there) == 5 and len(server.asked) == asked_before + 1, "only for the image that is not there"


@pytest.mark.parametrize("place", ["images/v1/patch8", "v1/patch8", "patch8", "."])
def test_a_damaged_image_of_objects365_comes_out_of_its_archive_wherever_it_lies(server, project, annotated, place):
    profile = load_profile("paper-first-6")
    download.get(profile, "objects365", base=server.base)
    folder = project / "data" / "objects365" / "val"
    name = "objects365_v1_00000002.jpg"
    if place != "images/v1/patch8":
        (folder / place).mkdir(parents=True, exist_ok=True)
        for path in (folder / "images" / "v1" / "patch8").iterdir():
            path.rename(folder / place / path.name)
    whole = (folder / place / name).read_bytes()
    (folder / place / name).write_bytes(whole[:-2000])
    server.asked.clear()
    outcome = download.get(profile, "objects365", base=server.base)[1]
    assert len(outcome.there) == 5 and (folder / place / name).read_bytes() == whole
    assert "val/images/v1/patch8.tar.gz" in {address for address, *_ in server.asked}
    assert {address for address, *_ in server.asked} <= set(server.files), "nothing that does not exist is asked for"


def test_a_full_disk_keeps_the_archive_and_fetches_no_other(server, project, annotated, monkeypatch):
    profile, folder = load_profile("paper-first-6"), project / "data" / "objects365" / "val"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left on device"):
            download.get(profile, "objects365", base=server.base)
    assert [path.name for path in (folder / "archives").iterdir()] == ["v1-patch8.tar.gz"]
    asked = [address for address, *_ in server.asked if address.endswith(".tar.gz")]
    assert asked == ["val/images/v1/patch8.tar.gz"]
    server.asked.clear()
    assert len(download.get(profile, "objects365", base=server.base)[1].there) == 5
    assert "val/images/v1/patch8.tar.gz" not in {address for address, *_ in server.asked}, "the kept one is used"
