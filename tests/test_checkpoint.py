"""Which LVLM exactly: a commit of a hub's, a folder's files."""

import pytest

from acs_lib.lvlms import checkpoint
from acs_lib.lvlms.checkpoint import lvlm_digest, pinned
from acs_lib.profiles import LVLMSpec

ONE, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def hub(offline_hub):
    """Writes a repository of the hub's cache whose `main` is a commit, which holds no more than config.json."""

    def write(source, commit):
        folder = offline_hub(source, commit)
        (folder / "config.json").write_text("{}")

    return write


def spec(source="someone/model", **settings):
    return LVLMSpec(name="mine", source=source, **settings)


def test_a_hub_lvlm_without_a_revision_is_the_commit_that_main_is(hub):
    hub("someone/model", ONE)
    assert pinned(spec()) == spec(revision=ONE)
    assert lvlm_digest(spec()) == lvlm_digest(spec(revision="main")) == f"someone/model@{ONE}"


def test_one_process_stays_with_one_commit_and_the_next_one_sees_another(hub):
    hub("someone/model", ONE)
    before = lvlm_digest(spec())
    hub("someone/model", OTHER)
    assert lvlm_digest(spec()) == before
    checkpoint.hub_commit.cache_clear()
    assert lvlm_digest(spec()) == f"someone/model@{OTHER}"


def test_a_commit_is_taken_at_its_word(offline_hub):
    assert pinned(spec(revision=OTHER)) == spec(revision=OTHER)
    assert lvlm_digest(spec(revision=OTHER)) == f"someone/model@{OTHER}"


def test_a_commit_that_cannot_be_told_is_refused(offline_hub):
    for source in ("someone/model", "no/such/folder"):
        with pytest.raises(OSError, match=rf"cannot load the LVLM '{source}' \(.*\); give .* the network at hand$"):
            lvlm_digest(spec(source))


def test_what_was_fetched_is_not_asked_for_again(hub, monkeypatch):
    hub("someone/model", ONE)
    monkeypatch.setattr("transformers.utils.cached_file", None)
    assert pinned(spec()).revision == ONE


def test_a_folder_has_no_commit(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    mine = spec(str(tmp_path))
    before = lvlm_digest(mine)
    assert pinned(mine) == mine and len(before) == 64
    (tmp_path / "head_set.json").write_text("{}")
    (tmp_path / "loss.csv").write_text("1\n")
    assert lvlm_digest(mine) == before, "what belongs to the LVLM, and is none of it"
    (tmp_path / "config.json").write_text("{ }")
    assert lvlm_digest(mine) != before
