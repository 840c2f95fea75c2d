"""What the doctor says of this machine, and of others."""

import re
import urllib.error

import pytest
from typer.testing import CliRunner

from acs_lib import doctor, paths
from acs_lib.cli import app
from acs_lib.profiles import available, load_profile


def found(name):
    return {finding.name: finding for finding in doctor.machine()}[name]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*arguments, **settings):
        raise urllib.error.URLError("refused")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def test_this_machine_can_run_the_tests():
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines() if line and line[0] != " "]
    assert names[:3] == ["python", "packages", "device"] and names[-2:] == ["profiles:", "next:"]
    assert "with run, demo, ray, test" in result.output
    for name in available():
        assert re.search(rf"^  {name} +\S", result.output, re.M)


def test_a_core_without_extras_is_told_what_to_do(monkeypatch):
    real = doctor.importlib.util.find_spec
    missing = sum(doctor.EXTRAS.values(), ())
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    packages = found("packages")
    assert packages.state == "lack" and "the core alone" in packages.told and "./run_all.sh" in packages.mend
    assert doctor.next_step([packages]).startswith("./run_all.sh, which sets up")
    assert doctor.examine()[1] is False


def test_the_hub(monkeypatch):
    assert "is not reached (refused)" in doctor.hub().told and doctor.hub().state == "note"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert doctor.hub().told.startswith("https://mirror.example is not reached")

    def answers(code):
        def opened(request, timeout):
            assert request.get_method() == "HEAD" and timeout == doctor.PATIENCE
            raise urllib.error.HTTPError(request.full_url, code, "", {}, None)

        return opened

    monkeypatch.setattr(doctor.urllib.request, "urlopen", answers(404))
    assert doctor.hub().state == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in doctor.hub().told


def test_little_memory_and_disk_are_told(monkeypatch):
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 500_000))
    assert doctor.memory().state == "lack" and "batch_queries" in doctor.memory().mend
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: (_ for _ in ()).throw(ValueError))
    assert doctor.memory().told == "not told by this system"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e9}))
    assert found("disk").state == "lack" and "--profile smoke" in found("disk").mend
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 9e9}))
    assert (found("disk").state, found("disk").mend) == ("ok", "")


def test_a_busy_machine_is_noted(monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (99.0, 0, 0), raising=False)
    assert "busy with other work (load 99.0)" in found("cores").told


def test_the_next_step_follows_what_is_done(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    assert doctor.next_step([]).startswith("./run_all.sh for the paper")
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "index.html").write_text("")
    (tmp_path / "embedded" / "manifest.json").write_text('{"total_seconds": 2400.0}')
    assert doctor.next_step([]).startswith("acs probe")
    (line,) = [line for line in doctor.profiles() if line.startswith("embedded ")]
    assert line.endswith(f"; 40 minutes here; its report: {tmp_path / 'embedded' / 'index.html'}")


def test_what_a_profile_needs_that_is_not_here(monkeypatch, tmp_path, offline_hub):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "has_gpu", lambda: False)
    assert doctor.needs(load_profile("embedded")) == []
    paper = load_profile("paper")
    first, second = paper.lvlms
    lacking = [
        f"{first.source} from the model hub", f"{second.source} from the model hub",
        "COCO (acs data coco --profile paper)", "Objects365 (acs data objects365 --profile paper)",
        "a GPU such as an A100 SXM 80 GB",
    ]  # fmt: skip
    assert doctor.needs(paper) == lacking
    (offline_hub(first.source, first.revision) / "config.json").write_text("{}")
    for dataset in paper.datasets[:1]:
        for split in dataset.splits.values():
            (tmp_path / split.annotations).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / split.annotations).write_text("{}")
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    assert doctor.needs(paper) == [lacking[1], lacking[3]]
