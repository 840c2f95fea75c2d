"""The paper's own numbers (arXiv 2606.01612), kept apart from everything measured here.

A measured row is set against a published one only where LVLM, dataset and method are the same, so the embedded LVLMs
have none.
"""

import pandas as pd

PAPER = "arXiv 2606.01612"

COLUMNS = (
    ("Qwen2.5-VL-7B", "COCO"), ("Qwen2.5-VL-7B", "Objects365"),
    ("InternVL-3.5-8B", "COCO"), ("InternVL-3.5-8B", "Objects365"),
)  # fmt: skip

BEST_BASELINE = "best sampling baseline"
BASELINE_FAMILIES = ("likelihood", "consensus")  # of the methods measured here that can be it

SMALL_OBJECTS = {  # Acc@0.5 in %, one number a column
    "greedy": (61.4, 43.0, 49.1, 21.9),
    BEST_BASELINE: (60.9, 41.7, 53.8, 23.2),
    "ACS-Free": (63.4, 43.0, 53.1, 24.8),
    "ACS-Learned": (65.3, 45.1, 58.6, 25.5),
}

REGRESSOR_PEARSON = 0.67  # the paper reports r above this


def main_results() -> pd.DataFrame:
    """lvlm, dataset, method, acc50 (0-1), source: small objects, 16 rows.

    'best sampling baseline' is the best of the paper's sampling baselines in that column, which need not be the same
    method in each.
    """
    rows = [
        (*column, method, round(percent / 100, 3), f"{PAPER}, Acc@0.5 on small objects")
        for method, percents in SMALL_OBJECTS.items()
        for column, percent in zip(COLUMNS, percents, strict=True)
    ]
    return pd.DataFrame(rows, columns=["lvlm", "dataset", "method", "acc50", "source"])


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The table with published_acc50 as last column, filled only where (lvlm, dataset, method) is a published row."""
    keys = ["lvlm", "dataset", "method"]
    known = main_results()[[*keys, "acc50"]].rename(columns={"acc50": "published_acc50"})
    return table.merge(known, on=keys, how="left", validate="one_to_one")


def by_size() -> pd.DataFrame:
    """lvlm, dataset, method, size, acc50, miou (0-1), source: objects over 5 % of the image against small ones.

    NaN and None where the paper's text at hand states no number, dataset or method.
    """
    figure, text = f"{PAPER}, teaser figure", PAPER
    rows = [
        ("Qwen2.5-VL-7B", "COCO", "greedy", "large", 0.8719, 0.8037, figure),
        ("Qwen2.5-VL-7B", "COCO", "greedy", "small", 0.6135, 0.5222, figure),
        ("InternVL-3.5-8B", None, "greedy", "large", 0.64, None, text),
        ("InternVL-3.5-8B", None, "ACS (variant not stated)", "large", 0.70, None, text),
    ]
    return pd.DataFrame(rows, columns=["lvlm", "dataset", "method", "size", "acc50", "miou", "source"])
