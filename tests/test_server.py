"""Answers of a real OpenAI-compatible server, transformers' own, through a file to `acs score`."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from transformers.utils import is_accelerate_available
from transformers.utils.import_utils import is_serve_available
from typer.testing import CliRunner

from acs_lib import cli, ground, paths
from acs_lib.core.images import read_image
from acs_lib.grounding.answers import as_answer
from acs_lib.grounding.api import samples
from acs_lib.lvlms.load import load_lvlm
from acs_lib.method.forced import force_candidates
from acs_lib.method.heads import HeadSet
from acs_lib.method.selection import acs_free

pytestmark = pytest.mark.skipif(
    not (is_serve_available() and is_accelerate_available()),
    reason="transformers serve needs fastapi, uvicorn, openai and accelerate: pip install them",
)
NAMES = {"internvl": "internvl-embedded", "qwen2_5_vl": "qwen2.5-vl-embedded"}
HOW = {"temperature": 0.8, "top_p": 0.6}
PATIENCE = 180  # seconds until the server is up
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # it is here, behind no proxy


@pytest.fixture
def server(family, tmp_path):
    """The address of a server of the embedded LVLM of a family."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, Path(__file__).with_name("serve_embedded.py"), paths.EMBEDDED / family, str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address, begun = f"http://localhost:{port}", time.monotonic()
    try:
        while True:
            told = (tmp_path / "log").read_text()
            assert process.poll() is None and time.monotonic() - begun < PATIENCE, told
            try:
                OPEN(f"{address}/health").close()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def answer(address: str, family: str, image: str, question: str, seed: int, **how) -> str:
    """One answer, as docs/other_engines.md asks for it."""
    picture = base64.b64encode(Path(image).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": question},
    ]
    settings = json.loads((paths.EMBEDDED / family / "generation_config.json").read_text())
    settings |= {"do_sample": how["temperature"] > 0, "max_new_tokens": 16, "top_k": 0}
    body = {"messages": [{"role": "user", "content": content}], "seed": seed, **how}
    body["generation_config"] = json.dumps(settings)
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with OPEN(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def test_a_servers_answers_are_scored_as_if_forced_here(server, family, tmp_path):
    lvlm, lines = load_lvlm(NAMES[family]), []
    for image, category in samples().drop_duplicates("image")[["image", "category"]].iloc[:2].itertuples(index=False):
        question = lvlm.question.format(object=category)
        greedy = answer(server, family, image, question, 0, temperature=0)
        sampled = [answer(server, family, image, question, seed, **HOW) for seed in range(10)]
        lines.append({"image": image, "object": category, "greedy": greedy, "answers": sampled})
    assert len({text for line in lines for text in line["answers"]}) > 4, "answers that are all alike prove little"
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    result = CliRunner().invoke(cli.app, ["score", str(file), "--lvlm", NAMES[family], "--json"])
    assert result.exit_code == 0, result.output

    heads = HeadSet.load(paths.EMBEDDED / family / "head_set.json", lvlm.name)
    for line, told in zip(lines, map(json.loads, result.stdout.splitlines()), strict=True):
        native = ground(lvlm, line["image"], line["object"], samples=1)
        assert told["candidates"][0]["text"] == native.table["text"][0], "the server was shown and asked the same"
        prompt = lvlm.prompt(read_image(line["image"]), line["object"])
        ids = [as_answer(text).ids(lvlm) for text in (line["greedy"], *line["answers"])]
        forced, _ = force_candidates(lvlm, prompt, "a", line["object"], ids)
        scores = acs_free(heads.heads, heads.coordinates).score(forced)
        for row, box, score in zip(told["candidates"], forced.boxes, scores, strict=True):
            np.testing.assert_allclose(np.array(row["box"], float), box, atol=1e-3)
            np.testing.assert_allclose(row["score"], score, atol=1e-5)
        assert forced.parsed.all()
