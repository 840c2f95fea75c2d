"""Every other way to choose: one registry, one signature.

`SELECTORS` holds the methods without parameters in the order of the tables. Those that need heads, a regressor or a
second question are made by `spatial_entropy` and `likelihood.p_true`, and in method.selection by `acs_free`,
`acs_learned` and `all_heads`; `FUSIONS` holds those whose box is outside the pool. `METHODS` has the names as they are
written on a command line, without `all_heads`.
"""

import re

from acs_lib.method.baselines import attention, consensus, controls, likelihood
from acs_lib.method.baselines.attention import spatial_entropy
from acs_lib.method.baselines.consensus import FUSIONS
from acs_lib.method.selection import Selector

__all__ = ["FUSIONS", "METHODS", "SELECTORS", "slug", "spatial_entropy"]

SELECTORS: dict[str, Selector] = {
    selector.name: selector
    for selector in (
        Selector("greedy", "control", controls.greedy, "-", pool="all"),
        Selector("random", "control", controls.random, "-"),
        Selector("box area, large first", "control", controls.area_large, "-"),
        Selector("box area, small first", "control", controls.area_small, "-"),
        Selector("sequence log-prob", "likelihood", likelihood.sequence_logprob, "standard"),
        Selector("sequence log-prob, all tokens", "likelihood", likelihood.sequence_logprob_all, "standard"),
        Selector("mean token log-prob", "likelihood", likelihood.mean_token_logprob, "standard"),
        Selector("min-token probability", "likelihood", likelihood.min_token_probability, "standard"),
        Selector("token entropy", "likelihood", likelihood.token_entropy, "standard"),
        Selector("self-certainty", "likelihood", likelihood.self_certainty, "arXiv 2502.18581"),
        Selector("DeepConf mean", "likelihood", likelihood.deepconf_mean, "arXiv 2508.15260"),
        Selector("DeepConf lowest window", "likelihood", likelihood.deepconf_lowest_window, "arXiv 2508.15260"),
        Selector("medoid", "consensus", consensus.medoid, "arXiv 2203.11171, for boxes"),
        Selector("attention mass (SVAR)", "attention", attention.attention_mass, "arXiv 2411.16724"),
        Selector("mass inside the box (MTLA)", "attention", attention.mass_in_box, "arXiv 2607.05978"),
        Selector("entropy, all heads", "attention", attention.entropy_all_heads, "ablation of arXiv 2606.01612"),
        Selector("entropy, random heads", "attention", attention.entropy_random_heads, "ablation of arXiv 2606.01612"),
    )
}


def slug(name: str) -> str:
    """A method's name as a word for the command line: 'mass inside the box (MTLA)' -> 'mass-inside-the-box-mtla'."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


METHODS = ("acs-free", "acs-learned", "spatial-entropy", "p-true", *map(slug, SELECTORS), *map(slug, FUSIONS))
