"""The card of a folder with a head set and a regressor: what they belong to, what they were found on, how good they
are, and how to use and share them. Markdown with the front matter that model hubs read."""

import pandas as pd

from acs_lib import __version__
from acs_lib.core.candidates import COORDINATES
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import LVLMSpec, Profile, known_lvlms

CARD = "README.md"
NOT_RECORDED = "not recorded"


def make_card(
    profile: Profile, lvlm: LVLMSpec, head_set: HeadSet, counts: dict[str, int], heads: pd.DataFrame | None,
    fit: pd.DataFrame | None, licence: str | None = None,
) -> str:  # fmt: skip
    """The card's text.

    counts: split -> queries; heads: layer, head, auroc (0-1, chance 0.5), selected, as `Study.find_heads` has them;
    fit: the regressor's epochs with pearson (-1 to 1) and n, as `Study.fit_history` has them. Of what is None, or not
    there, the card says that it was not recorded.
    """
    origin, how = head_set.origin, profile.sampling
    weights = origin.weights if origin else NOT_RECORDED
    limits = ", ".join(f"{name} {value}" for name, value in lvlm.limits.items()) or "as the checkpoint has it"
    hub = "@" in weights
    rows = [
        ("LVLM", f"`{lvlm.source if hub else lvlm.name}`"),
        ("commit" if hub else "digest of its files", f"`{weights.rpartition('@')[2]}`"),
        ("computed in", lvlm.dtype),
        ("image", limits),
        ("question", f"`{lvlm.question}`"),
        ("answers", f"1 greedy and {how.samples} sampled at temperature {how.temperature:g}, top-p {how.top_p:g}, at "
         f"most {how.max_new_tokens} tokens, seed {how.seed}"),
        ("data", f"{head_set.found_on}: objects up to {profile.small:.1%} of their image"),
        *((f"n, {split}", f"{counts[split]} objects" if split in counts else NOT_RECORDED)
          for split in ("train", "validation")),
        ("r", _correlation(fit)),
        ("licence", licence or "not stated; the terms of the LVLM and of the data hold besides"),
        ("made by", f"acs-kit {__version__}, `acs calibrate`"),
    ]  # fmt: skip
    at = ", ".join(COORDINATES[index] for index in head_set.coordinates)
    front = ["---", "library_name: acs-kit", "tags: [grounding, attention, arxiv:2606.01612]"]
    front += [f"base_model: {lvlm.source}"] if hub else []
    front += [f"license: {licence.lower()}" if licence else "license: other", "---"]
    return "\n".join([
        *front, "",
        f"# Discriminative heads and attention-IoU regressor of {lvlm.name}", "",
        "They choose among the boxes that this LVLM samples for an object, by its own attention: ACS-Free and",
        "ACS-Learned of \"Self-Improving Small Object Grounding in LVLMs\" (arXiv 2606.01612), as acs-kit reproduces",
        "them. Found by acs-kit, not by the paper's authors.", "",
        "| | |", "|---|---|", *(f"| {name} | {told} |" for name, told in rows), "",
        f"D_c (layer and head counted from 0; read at {at}; AUROC of low entropy for good boxes on the training",
        "answers, chance is 0.5):", "",
        "| layer | head | AUROC |", "|---|---|---|", *_heads(head_set, heads), "",
        "r is the Pearson correlation of predicted and true IoU on the validation images, in the best epoch, which",
        "they chose; of other images it is to be expected lower. A predicted IoU means nothing for larger objects.", "",
        "## Use", "",
        "```", "sha256sum -c SHA256SUMS",
        f"acs ground street.jpg \"traffic light\" --lvlm {_called(lvlm, weights)} --calibration FOLDER-OR-HUB-NAME",
        "```", "",
        "Other weights and another question are refused, another temperature or top-p is a warning. To share the",
        "folder, use the hub's own client: `hf upload you/name THIS-FOLDER`.", "",
    ])  # fmt: skip


def _called(lvlm: LVLMSpec, weights: str) -> str:
    """The LVLM as a command line names it: by a profile's name for it, by hub name and commit, or by its folder."""
    if lvlm.name in known_lvlms():
        return lvlm.name
    return weights if "@" in weights else "FOLDER-OF-THE-LVLM"


def _correlation(fit: pd.DataFrame | None) -> str:
    if fit is None or fit.empty or not fit["pearson"].notna().any():
        return NOT_RECORDED
    best = fit.loc[fit["pearson"].idxmax()]
    return f"{best['pearson']:.3f} (Pearson, of {int(best['n'])} answers to validation images)"


def _heads(head_set: HeadSet, heads: pd.DataFrame | None) -> list[str]:
    known = {} if heads is None else heads.set_index(["layer", "head"])["auroc"].dropna().to_dict()
    return [
        f"| {layer} | {head} | {f'{known[layer, head]:.3f}' if (layer, head) in known else NOT_RECORDED} |"
        for layer, head in head_set.heads
    ]
