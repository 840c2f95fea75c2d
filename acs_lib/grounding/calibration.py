"""A folder with a head set, a regressor and thresholds, as `acs calibrate` writes and others hand it on
(docs/calibration.md)."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from acs_lib.core.files import SUMS, check_sums
from acs_lib.lvlms.checkpoint import CALIBRATED

HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def calibration(source: str | Path) -> dict[str, Path]:
    """The files of a folder, or of a hub's repository (owner/name, or owner/name@revision), as the arguments head_set
    and regressor of `ground`, which looks for thresholds beside them; without a regressor in it, head_set alone.

    Of a repository only these files are fetched, with their digests. ValueError where there is no head set, or a file
    is not the one that SHA256SUMS names; OSError where a repository cannot be had.
    """
    folder, named = Path(source).expanduser(), HUB_NAME.fullmatch(str(source))
    if not folder.is_dir():
        if named is None:
            raise ValueError(f"there is no calibration {str(source)!r}: give a folder, or a hub name like owner/name")
        folder = _fetched(named["name"], named["revision"])
    names = [name for name in CALIBRATED if (folder / name).is_file()]
    if CALIBRATED[0] not in names:
        raise ValueError(f"{source} holds no {CALIBRATED[0]}; give a folder that acs calibrate wrote")
    if (folder / SUMS).is_file() and (loose := set(names) - set(check_sums(folder))):
        raise ValueError(f"{folder / SUMS} does not name {', '.join(sorted(loose))}; fetch the folder again")
    return {Path(name).stem: folder / name for name in names if name in CALIBRATED[:2]}


def _fetched(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*CALIBRATED, SUMS, "README.md"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise OSError(
            f"cannot have the calibration {name!r} ({reason}); give a folder, or a hub name with the network at hand"
        ) from error
