"""The lowest versions of the core's dependencies that pyproject.toml allows, as pip's constraints, for the optional job
in .github/workflows/versions.yml:

python tools/lowest.py > lowest.txt && pip install -c lowest.txt -e ".[test]"
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    print("{}=={}".format(*re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()))
