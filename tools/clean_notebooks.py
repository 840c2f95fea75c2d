"""Take out of the stored notebooks what depends on the machine or the minute: widgets, their state, run times.

python docs/clean_notebooks.py
"""

import nbformat

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.runner import WIDGET

for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
    notebook = nbformat.read(path, 4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    write_text(path, nbformat.writes(notebook) + "\n")
