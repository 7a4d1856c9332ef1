"""Every kind of noise and of a server's fault, from a teacher over HTTP to the report that names each line's reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from chat_server import ChatServer, FastClock, Fault, render_answer
from scripted_teacher import ScriptedTeacher, write_captions

from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from ray_jobs.config import load_run_spec
from ray_jobs.generate import dialogues

N_IMAGES = 60
FAULTS = (
    Fault(429, b"{}", {"retry-after": "2"}),
    Fault(500, b"oh"),
    Fault(cut_bytes=20),
    Fault(body=b"<html>Bad gateway</html>"),
    Fault(body=b'{"error": {"message": "overloaded", "code": 529}}'),
    Fault(body=b'{"choices": []}'),
)


def test_each_noisy_line_is_left_out_for_its_reason_whatever_the_server_does(tmp_path: Path) -> None:
    """One line of each of 60 answers is spoilt; every third request meets a fault first, and is asked again."""
    planted: list[tuple[str, str]] = []  # (reason, line)
    n_lines, order = 0, list[str]()
    scripted = ScriptedTeacher(noise_frac=0)

    def answer(prompt: str, n_before: int) -> Fault:
        nonlocal n_lines
        if n_before == 0:
            order.append(prompt)
            if len(order) % 3 == 0:
                return FAULTS[len(order) // 3 % len(FAULTS)]
        lines = [line.partition(". ")[2] for line in scripted.answer(prompt).splitlines()]
        picture = int(re.findall(r"number (\d+)", prompt)[0])
        reason, spoil = SPOILT[picture % len(SPOILT)]
        place = next(n for n, line in enumerate(lines) if spoil(line) != line)
        lines[place] = spoil(lines[place])
        planted.append((reason, lines[place]))
        n_lines += len(lines)
        return Fault(body=render_answer("\n".join(lines)))

    captions = write_captions(tmp_path, (f"A dog number {n} at a lake." for n in range(N_IMAGES)))
    with ChatServer(answer) as server:
        options = f"{{url: {server.url}, model: scripted, api_key_env: '', max_concurrency: 1}}"
        given = [f"runs_dir={tmp_path}", "name=d", f"generate.captions={captions}", "generate.talk_frac=0"]
        spec = load_run_spec(None, [*given, f"generate.teacher={options}"])
        assert spec.generate.teacher is not None
        teacher = Teacher(spec.generate.teacher, ReplyCache(tmp_path / "replies"), clock=FastClock())
        counts = dialogues.run(spec, teacher)
        n_asked = server.n_asked
    assert (len(planted), n_asked) == (N_IMAGES, N_IMAGES + N_IMAGES // 3)
    assert counts["requests"] == {"sent": n_asked, "from_cache": 0, "failed": 0}, "nothing is lost"
    text = (tmp_path / "d/generated/rejected.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted((row["reason"], row["line"]) for row in rows) == sorted(planted)
    assert all(row["why"] for row in rows)
    assert counts["kept"] == n_lines - N_IMAGES, "every clean line is kept"
    report = (tmp_path / "d/generated/report.md").read_text(encoding="utf-8")
    totals = dict(sorted(Counter(reason for reason, _ in planted).items()))
    assert counts["rejected"] == totals == {"arguments": 15, "format": 30, "tool": 15}
    assert "rejected by reason: " + ", ".join(f"{reason} {n}" for reason, n in totals.items()) in report
    shown = re.findall(r"^- (\w+): .*: `(.*)`$", report.partition("## Left out")[2], re.MULTILINE)
    assert len(shown) == 20
    assert set(shown) <= set(planted)


SPOILT: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("format", lambda line: line.replace(", [", " [")),
    ("format", lambda line: line[:-2] + "]"),
    ("format", lambda line: line[:-1]),
    ("format", lambda line: "What a picture! " + line.partition(", [")[0]),
    ("format", lambda line: "Go on" + line[line.index(", [") :]),
    ("format", lambda line: "so " * 150 + line),
    ("arguments", lambda line: line.rpartition(", ")[0] + '"]' if line.count(", ") > 2 else line),
    ("arguments", lambda line: line.replace("example.png", "image/other.png")),
    ("arguments", lambda line: line.replace(", the dog", ", <object>")),
    ("tool", lambda line: line.replace(', "', ' Quickly, "')),
    ("tool", lambda line: line.replace("[", "[Terminal, ")),
    ("tool", lambda line: "Find every edge, as Canny does" + line[line.index(", [") :]),
)
