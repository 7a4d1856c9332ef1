"""The page on which a person decides: one file that asks no host for anything, whatever texts it shows.

All texts are escaped, and a policy in the page (CSP) allows its own style and its own script alone, by their hashes.
The script writes the decisions as a file to save in place of the one that `review.py` reads.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.instruct.review import DECISIONS, REVIEW_FILE

PAGE_FILE = "review.html"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f; }
header { position: sticky; top: 0; background: #fff; padding: .5rem 0; border-bottom: 1px solid #ccc; }
article { border: 1px solid #ccc; border-radius: .5rem; padding: 1rem; margin: 1rem 0; }
article img { float: right; max-width: 240px; max-height: 240px; margin-left: 1rem; }
.why { color: #9a3412; font-weight: 600; }
.situation { white-space: pre-wrap; color: #555; overflow-wrap: anywhere; }
label { display: block; margin: .5rem 0; }
fieldset { border: 0; padding: 0; margin: 0; }
fieldset label { display: inline-block; margin-right: 1rem; }
textarea, input[name=note] { width: 100%; box-sizing: border-box; font: inherit; }
button { font: inherit; padding: .4rem 1rem; }
"""

_SCRIPT = """
"use strict";
const cards = [...document.querySelectorAll("article")];
function read(card) {
  const line = JSON.parse(card.dataset.line);
  line.decision = card.querySelector("input[type=radio]:checked").value;
  for (const name of ["note", "words", "answer"]) line[name] = card.querySelector(`[name=${name}]`).value;
  return line;
}
function count() {
  const open = cards.filter((card) => !card.querySelector("input[type=radio]:checked").value).length;
  document.getElementById("open").textContent = `${open} of ${cards.length} not decided`;
}
for (const card of cards) {
  card.addEventListener("input", (event) => {
    if (event.target.tagName === "TEXTAREA") card.querySelector("input[value=edit]").checked = true;
    count();
  });
}
document.getElementById("save").addEventListener("click", () => {
  const text = cards.map((card) => JSON.stringify(read(card)) + "\\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
  link.download = document.getElementById("save").dataset.file;
  link.click();
});
count();
"""


def render_page(lines: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, bytes]) -> str:
    """The page as HTML.

    Args:
        lines: of the review's file, decided or not.
        thumbnails: medium -> JPEG, of those that can be shown.
    """
    policy = (
        f"default-src 'none'; style-src '{_hash(_STYLE)}'; script-src '{_hash(_SCRIPT)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    cards = "\n".join(_render_card(number, line, thumbnails) for number, line in enumerate(lines))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width">
<title>Review of generated rows</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Review of generated rows</h1>
<p>Decide, save, put the saved file in the place of {REVIEW_FILE} beside this page, and run generate again.</p>
<header>
<button type="button" id="save" data-file="{REVIEW_FILE}">Save decisions</button> <span id="open"></span>
</header>
{cards}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _render_card(number: int, line: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> str:
    medium = str(line.get("medium") or "")
    picture = ""
    if medium in thumbnails:
        data = base64.b64encode(thumbnails[medium]).decode()
        picture = f'<img alt="{_escape(medium)}" src="data:image/jpeg;base64,{data}">\n'
    choices = "".join(
        f'<label><input type="radio" name="decision{number}" value="{value}"{_check(line["decision"] == value)}> '
        f"{value or 'not decided'}</label>"
        for value in ("", *DECISIONS)
    )
    named = f"<p>Attached: <bdi>{_escape(medium)}</bdi></p>\n" if medium else ""
    return f"""<article data-line="{_escape(json.dumps(line))}">
{picture}<p class="why"><bdi>{_escape(line.get("why"))}</bdi></p>
<p class="situation"><bdi>{_escape(line.get("situation"))}</bdi></p>
{named}<label>Words <textarea name="words" rows="2" dir="auto">
{_escape(line["words"])}</textarea></label>
<label>Answer <textarea name="answer" rows="{min(12, 1 + line["answer"].count(chr(10)))}" dir="auto">
{_escape(line["answer"])}</textarea></label>
<fieldset>{choices}</fieldset>
<label>Note <input name="note" value="{_escape(line["note"])}"></label>
</article>"""


def _check(is_chosen: bool) -> str:
    return " checked" if is_chosen else ""


def _escape(text: object) -> str:
    return html.escape(str(text or ""), quote=True)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
