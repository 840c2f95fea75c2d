"""The site: python -m sphinx -W --keep-going -c docs . site

Sphinx with MyST-NB, since it takes Markdown, notebooks and docstrings where they lie and needs no network, and Furo,
whose pages load nothing from other hosts. The source folder is the repository, so that every link means what it means
there. Notebooks are shown as they are stored, and never run.
"""

import re
from pathlib import Path

import acs_lib

ROOT = Path(__file__).resolve().parent.parent

project, author, copyright = "acs-kit", "acs-kit contributors", "acs-kit contributors"
release = version = acs_lib.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "docs/**.md", "notebooks/*.ipynb", "data/README.md", "data/embedded/*.md",
    "reports/reference/*/tables/*.md",
]  # fmt: skip
_read = {pattern.split("/")[0] for pattern in include_patterns}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in _read] + ["data/[!Re]*", "reports/[!r]*"]

myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from elsewhere
nb_merge_streams = True

autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = "acs-kit"
html_copy_source = False
html_additional_pages = {"index": "to_docs.html"}
templates_path = ["templates"]

FIELD = re.compile(r"([A-Za-z]\w*(?:, [A-Za-z]\w*)*): (?=\S)")


def _escaped(line: str) -> str:
    """A line of a docstring as reStructuredText: what stands in backquotes is code, all else is meant literally."""
    parts = re.split(r"`([^`]+)`", line)
    parts[::2] = [re.sub(r"([\\*|_`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{part}``\ " for part in parts[1::2]]
    return "".join(parts)


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of the house as reStructuredText.

    Lines `name: what it is` become a list; what is indented goes on from the line before it, or is code behind an empty
    one. Lists keep their dashes, everything else is a paragraph.
    """
    found, in_code, in_list = [], False, False
    for before, line in zip(["", *lines], lines):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        field = FIELD.match(text)
        starts = not before.strip()
        in_code = indent >= 4 and (starts or in_code)
        if in_code:
            found += ["::", "", line] if starts else [line]
        elif indent and not starts:
            found.append(f"  {_escaped(text)}" if in_list or indent < 4 else _escaped(text))
        elif field and (starts or in_list):
            found += ["", f"- **{field[1]}**: {_escaped(text[field.end() :])}"]
            in_list = True
        else:
            found += [""] * in_list + [_escaped(text)]
            in_list = False
    return found


def setup(app):
    def process_docstring(app, what, name, obj, options, lines):
        lines[:] = as_rst(lines)

    def name_table(app, docname, source):
        """Tables of a run begin with their caption; a page needs a title. They are linked to, and in no menu."""
        if docname.startswith("reports/"):
            source[0] = f"---\norphan: true\n---\n# {Path(docname).name.replace('_', ' ')}\n\n{source[0]}"

    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("source-read", name_table)
