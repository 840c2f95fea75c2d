"""What a look at an image costs: seconds of asking once, for one answer or several, on this machine."""

import time

import pandas as pd

from acs_lib.core.files import digest, query_key
from acs_lib.core.images import read_annotated_image
from acs_lib.method.effort import rounds
from acs_lib.study.experiment import Experiment, code_of
from acs_lib.study.stages import kept

Look = tuple[int, int]  # how many samples were drawn before it, and how many there are after it
COMPARED = (5, 10)  # samples that a closer look is compared by (`study.zoom`)
TIMED = 16  # questions that the seconds of a look are the mean of


def looks(samples: int) -> list[Look]:
    """The looks of the rounds of `method.effort`, and those at so many samples, or COMPARED, at once."""
    stops = rounds(samples)
    at_once = [(0, count) for count in (*COMPARED, samples) if count <= samples]
    return list(dict.fromkeys([*zip([0, *stops], stops), *at_once]))


def look_seconds(e: Experiment) -> dict[Look, float]:
    """Seconds of each of the profile's `looks`, the mean over the first TIMED small test objects, each asked about
    alone, from reading the image to the maps of the answers; one question before them is not timed. Without what
    choosing takes. Kept beside the run."""

    def measure() -> pd.DataFrame:
        from acs_lib.lvlms.load import load_spec  # late: they bring transformers
        from acs_lib.method.sampling import sample_candidates

        lvlm, some, rows = load_spec(e.lvlm), e.small.iloc[:TIMED], []

        def ask(query, drawn: int, samples: int) -> float:
            began, how = time.perf_counter(), e.profile.sampling.model_copy(update={"samples": samples})
            prompt = lvlm.prompt(read_annotated_image(query.image, query.width, query.height), query.category)
            asked = [prompt], [query.query_id], [query_key(query.query_id)], [query.category]
            sample_candidates(lvlm, *asked, how, e.profile.map_side, drawn)
            return time.perf_counter() - began

        wanted = looks(e.profile.sampling.samples)
        ask(next(some.itertuples()), *wanted[-1])
        for query in some.itertuples():
            rows += [(*look, ask(query, *look)) for look in wanted]
        return pd.DataFrame(rows, columns=["drawn", "samples", "seconds"])

    found = kept(e.run.folder / "look-seconds", digest([e.run.key, code_of(__name__)]), measure)
    means = found.groupby(["drawn", "samples"])["seconds"].mean()
    return {(int(drawn), int(samples)): float(value) for (drawn, samples), value in means.items()}
