"""Names of images in annotation files, as labelling tools export them, and what they lead to: never out of the root."""

import os

import pytest

from acs_lib.datasets import image_files
from acs_lib.datasets.image_files import AMBIGUOUS, BASE_NAME, GIVEN, MISSING, NORMALISED, NOWHERE, find_images


@pytest.fixture
def root(tmp_path):
    """images/a.jpg, images/my cat.jpg, images/100%.jpg, images/sub/deep/b.jpg, images/x/c.jpg, images/y/c.jpg"""
    folder = tmp_path / "images"
    for name in ("a.jpg", "my cat.jpg", "100%.jpg", "sub/deep/b.jpg", "x/c.jpg", "y/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (tmp_path / "secret.jpg").write_text("secret")
    return folder


def found(root, name):
    """(how, what is in the file or None, path under the root)"""
    path, how = find_images(root, [name])[name]
    if path is None:
        return how, None, None
    assert path.resolve().is_relative_to(root.resolve())
    return how, path.read_text() if path.is_file() else None, path.relative_to(root.resolve()).as_posix()


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "sub/../a.jpg", "my cat.jpg", "100%.jpg", "sub/deep/b.jpg"])
def test_as_given(root, name):
    assert found(root, name)[0] == GIVEN


def test_an_absolute_path_inside_the_folder_is_as_given(root):
    assert found(root, str(root / "a.jpg"))[:2] == (GIVEN, "a.jpg")


@pytest.mark.parametrize(
    ("name", "leads_to"),
    [
        ("images/v1/patch8/a.jpg", "a.jpg"),  # Objects365
        ("/home/somebody/data/a.jpg", "a.jpg"),
        ("..\\..\\label-studio\\data\\media\\upload\\1\\a.jpg", "a.jpg"),
        ("C:\\Users\\somebody\\a.jpg", "a.jpg"),
        ("D:/data/sub/deep/b.jpg", "sub/deep/b.jpg"),
        ("sub\\deep\\b.jpg", "sub/deep/b.jpg"),
        ("\\\\server\\share\\sub\\deep\\b.jpg", "sub/deep/b.jpg"),
        ("my%20cat.jpg", "my cat.jpg"),
        ("/data/upload/1/my%20cat.jpg", "my cat.jpg"),
        ("/data/upload/1/100%.jpg", "100%.jpg"),
        ("https://some.host/bucket/sub/deep/b.jpg?X-Signature=1/2&d=3#top", "sub/deep/b.jpg"),
        ("https://some.host/o/sub%2Fdeep%2Fb.jpg?alt=media", "sub/deep/b.jpg"),
        ("s3://bucket/a.jpg", "a.jpg"),
        ("file:///C:/data/my%20cat.jpg", "my cat.jpg"),
        ("http://localhost:8080/data/local-files/?d=pictures/my%20cat.jpg", "my cat.jpg"),
        ("/data/local-files/?d=pictures%5Csub%5Cdeep%5Cb.jpg", "sub/deep/b.jpg"),
    ],
)
def test_normalised(root, name, leads_to):
    assert found(root, name) == (NORMALISED, leads_to, leads_to)


@pytest.mark.parametrize("name", ["b.jpg", "other/b.jpg", "http://some.host/b.jpg"])
def test_a_base_name_that_is_unique_under_the_root(root, name):
    assert found(root, name) == (BASE_NAME, "sub/deep/b.jpg", "sub/deep/b.jpg")


@pytest.mark.parametrize("name", ["c.jpg", "z/c.jpg", "gone.jpg", "new/gone.jpg"])
def test_what_is_not_there_or_not_unique_keeps_its_place_under_the_root(root, name):
    """Where it may be fetched to."""
    assert found(root, name) == (MISSING, None, name)


def test_composed_and_decomposed_letters_are_the_same_name(root):
    """An archive packed on a Mac holds the latter, an export the former."""
    (root / "sub" / "Ko\u0308ter.jpg").write_text("dog")
    assert found(root, "K\u00f6ter.jpg")[:2] == (BASE_NAME, "dog")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "x/../../secret.jpg", "..\\secret.jpg", "%2e%2e/secret.jpg"]
)
def test_no_name_leads_out(root, name):
    how, content, path = found(root, name)
    assert (how, content) == (MISSING, None) and ".." not in path
    outside = str(root.parent / "secret.jpg")
    assert found(root, outside)[:2] == (MISSING, None)


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b.jpg", "a" * 300, "x/..", "\ud800.jpg", "http://host"])
def test_what_cannot_be_a_file_name_leads_nowhere(root, name):
    assert found(root, name) == (NOWHERE, None, None)


def test_links_inside_the_folder_are_followed_and_those_that_lead_out_are_not(root):
    (root / "inside.jpg").symlink_to(root / "a.jpg")
    (root / "outside.jpg").symlink_to(root.parent / "secret.jpg")
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "d.jpg").write_text("secret")
    (root / "linked").symlink_to(root.parent / "elsewhere")
    assert found(root, "inside.jpg")[:2] == (GIVEN, "a.jpg")
    for name in ("outside.jpg", "q/outside.jpg", "linked/d.jpg", "d.jpg", "linked/new.jpg"):
        how, content, _ = found(root, name)
        assert content is None and how in (NOWHERE, MISSING), name
    assert found(root, "outside.jpg")[0] == found(root, "linked/d.jpg")[0] == NOWHERE
    (root.parent / "link").symlink_to(root)
    assert find_images(root.parent / "link", ["a.jpg"])["a.jpg"] == (root.resolve() / "a.jpg", GIVEN)


def test_two_names_do_not_share_a_file_unless_both_say_so(root):
    """Of 1/a.jpg and 2/a.jpg one is not what lies there, and nobody knows which."""
    answer = find_images(root, ["1/a.jpg", "2/a.jpg", "sub/deep/b.jpg", "q/b.jpg", "my cat.jpg", "./my cat.jpg"])
    hows = {name: how for name, (_, how) in answer.items()}
    assert hows == {
        "1/a.jpg": AMBIGUOUS, "2/a.jpg": AMBIGUOUS, "sub/deep/b.jpg": GIVEN, "q/b.jpg": AMBIGUOUS,
        "my cat.jpg": GIVEN, "./my cat.jpg": GIVEN,
    }  # fmt: skip
    assert answer["1/a.jpg"][0] == root.resolve() / "1" / "a.jpg" and not answer["q/b.jpg"][0].exists()


def test_the_folder_is_listed_once_and_only_if_need_be(root, monkeypatch):
    walks, walk = [], os.walk
    monkeypatch.setattr(image_files.os, "walk", lambda folder, **how: walks.append(folder) or walk(folder, **how))
    find_images(root, ["a.jpg", "q/a.jpg", "sub/deep/b.jpg"])
    assert walks == []
    find_images(root, [f"{number}.jpg" for number in range(100)])
    assert len(walks) == 1
