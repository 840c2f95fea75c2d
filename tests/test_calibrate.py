"""D_c and a regressor of an LVLM from one's own annotated images: what it takes, and what is written."""

import json

import pytest

from acs_lib.profiles import GPUSpec, load_profile
from acs_lib.runs import plan
from acs_lib.study.calibrate import make_profile


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """An annotation file of 4,000 images of 640x480 px with one small dog each, and a folder without any of them."""
    folder = tmp_path_factory.mktemp("annotated")
    numbers = range(1, 4001)
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in numbers],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 30, 30], "area": 900, "iscrowd": 0}
            for n in numbers
        ],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", folder


@pytest.mark.parametrize("spec", load_profile("paper").lvlms, ids=lambda spec: spec.name)
def test_the_papers_lvlms_are_calibrated_on_an_ordinary_disk(annotated, spec):
    """InternVL's own maps of 48x64 cells would take 781 GB; the regressor sees 16x16."""
    profile = make_profile(spec, *annotated, layers=10)
    splits, _ = plan.make(profile, GPUSpec())
    assert splits["queries"].to_list() == [2000, 500]
    assert profile.small == profile.large == 0.05, "the paper's threshold"
    assert splits["maps_gb"].sum() < 70
