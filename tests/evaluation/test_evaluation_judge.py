"""Judges behind a stand-in server, and people behind a scripted keyboard."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.main import main
from llmkit.errors import ConfigError, DataError, OllamaError
from llmkit.evaluation import answers as answers_module
from llmkit.evaluation.human import rate
from llmkit.evaluation.judge import SCORE, WINS, Judged, judge, letter_of, score_of
from llmkit.evaluation.ledger import Ledger
from llmkit.evaluation.tables import evaluation_tables
from llmkit.export.doctor import machine

GB = 1_000_000_000
QUESTIONS = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(4)]


class StandIn:
    """An OpenAI-compatible server and an Ollama in one."""

    def __init__(self) -> None:
        self.says: Callable[[str, int], str | None] = lambda prompt, seed: "50"
        self.prompts: list[tuple[str, int]] = []
        self.keys: list[str | None] = []
        self.sizes = {"small:latest": GB, "large:latest": 20 * GB}
        self.loaded: list[str] = []
        self.url = ""

    def answer(self, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/api/tags":
            models = [{"name": name, "size": size} for name, size in self.sizes.items()]
            return {"models": models}
        if path == "/api/ps":
            return {"models": [{"name": name} for name in self.loaded]}
        if path == "/api/show":
            info = {"general.architecture": "llama", "llama.block_count": 32}
            info |= {"llama.embedding_length": 4096, "llama.attention.head_count": 32}
            return {"model_info": info | {"llama.attention.head_count_kv": 8}}
        if path != "/v1/chat/completions":
            return None
        prompt = asked["messages"][0]["content"]
        said = self.says(prompt, asked["seed"])
        if said is None:
            return None
        self.prompts.append((prompt, asked["seed"]))
        message = {"role": "assistant", "content": said}
        return {"choices": [{"message": message}], "usage": {"total_tokens": 10}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.keys.append(self.headers.get("Authorization"))
            found = state.answer(self.path, json.loads(content or b"{}"))
            body = json.dumps(found if found is not None else {"error": "gone"}).encode()
            self.send_response(200 if found is not None else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{http.server_port}")
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


class Answering:
    """A model that answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answers(self, questions: Sequence[str]) -> list[str | None]:
        return [f"{self.name} {{reference}}" if self.name != "same" else "same" for _ in questions]


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(name: str, _backend: str) -> Iterator[Answering]:
        yield Answering(name)

    monkeypatch.setattr(answers_module, "open_model", opened)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(QUESTIONS))
    return path


def judged(server: StandIn, data: Path, models: Sequence[str] = ("a",), **more: Any) -> Judged:
    out = data.with_name("judged.jsonl")
    return judge(models, data, out, judge="small", url=server.url, **more)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85), (" 0\n", 0), ("100", 100), ("101", None), ("85/100", None), ("", None),
        ("Score: 85", None), ("I think it deserves 85.", None), ("-5", None), ("8.5", None),
    ],
)  # fmt: skip
def test_only_an_integer_alone_is_a_score(reply: str, score: int | None) -> None:
    assert score_of(reply) == score


@pytest.mark.parametrize(
    ("reply", "letter"), [("A", "A"), (" B.\n", "B"), ("C", None), ("A or B", None), ("", None)]
)
def test_only_a_letter_alone_is_a_choice(reply: str, letter: str | None) -> None:
    assert letter_of(reply) == letter


def test_scores_are_means_and_differences_are_paired(server: StandIn, data: Path) -> None:
    server.says = lambda prompt, seed: "40" if "`a " in prompt else str(60 + 10 * (seed % 2))
    found = judged(server, data, ["a", "b"], repeats=2)
    scores = [model.scores[SCORE] for model in found.evaluation.models]
    assert [score.value for score in scores] == [40, 65]
    assert found.evaluation.task == "judge small"  # another judge's results stand beside these
    assert scores[1].difference == 25
    assert (found.agreement, found.invalid, found.asked, found.tokens) == (0.5, 0, 16, 160)
    prompt = server.prompts[0][0]
    assert "What is 0?" in prompt
    assert "It is 0." in prompt
    assert "a {reference}" in prompt  # braces of an answer are text
    assert found.prompt.count("{") == 3


def test_replies_that_are_no_scores_are_counted_and_left_out(server: StandIn, data: Path) -> None:
    server.says = lambda prompt, seed: {"0": "85/100", "1": "Score: 85", "2": ""}.get(
        str(re.search(r"What is (\d)", prompt)[1]),
        "70",  # type: ignore[index]
    )
    found = judged(server, data)
    assert (found.invalid, found.evaluation.items, found.evaluation.left_out) == (3, 1, 3)
    assert found.evaluation.models[0].scores[SCORE].value == 70
    server.says = lambda prompt, seed: "prose"
    with pytest.raises(DataError, match="4"):
        judge("b", data, data.with_name("other.jsonl"), judge="small", url=server.url)


def test_a_stopped_run_asks_nothing_twice(server: StandIn, data: Path) -> None:
    server.says = lambda prompt, seed: "50" if len(server.prompts) < 5 else None
    with pytest.raises(OllamaError, match="gone"):
        judged(server, data, ["a", "b"])
    out = data.with_name("judged.jsonl")
    assert len(out.read_text().splitlines()) == 5
    with out.open("ab") as file:
        file.write(b'{"key": "cut o')  # as a kill leaves it
    server.says = lambda prompt, seed: "50"
    found = judged(server, data, ["a", "b"])
    assert found.asked == 3
    assert len(server.prompts) == len(set(server.prompts)) == 8
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 8
    assert judged(server, data, ["a", "b"]).asked == 0
    assert judged(server, data, ["a", "b"], repeats=2).asked == 8


def test_a_pair_is_won_in_both_orders_or_not_at_all(server: StandIn, data: Path) -> None:
    def says(prompt: str, _seed: int) -> str:
        if "What is 0?" in prompt or "What is 1?" in prompt:  # b is better, wherever it stands
            return "B" if "Answer B: b" in prompt else "A"
        return "A" if "What is 2?" in prompt else "the first one"  # always the first; no letter

    server.says = says
    found = judged(server, data, ["a", "b"], pairwise=True)
    (against,) = found.evaluation.models
    assert (against.model, found.evaluation.against) == ("b", "a")
    assert "against a" in str(evaluation_tables(found.evaluation)[0].title)
    assert against.scores[WINS].value == pytest.approx((1 + 1 + 0.5) / 3)
    assert (against.ties, found.invalid, found.evaluation.left_out) == (1, 2, 1)
    assert found.agreement == pytest.approx(2 / 3)


def test_the_prompt_is_replaceable_and_the_key_is_sent(
    server: StandIn, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    own = data.with_name("prompt.txt")
    own.write_text("Rate {answer}.")
    judged(server, data, prompt=own)
    assert server.prompts[0][0] == "Rate a {reference}."
    assert set(server.keys) == {"Bearer secret"}
    with pytest.raises(ConfigError, match="answer_a"):
        judged(server, data, ["a", "b"], prompt=own, pairwise=True)


def test_memory_is_checked_first_and_a_smaller_judge_is_named(
    server: StandIn, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * GB)
    monkeypatch.setattr(machine, "free_gpu_memory", lambda: 0)
    out = data.with_name("judged.jsonl")
    with pytest.raises(ConfigError, match=r"large.*20\.8 GB.*4\.0 GB.*small"):
        judge("a", data, out, judge="large")  # 0.5 GB of keys and values, 0.3 of buffers
    assert server.prompts == []
    server.sizes = {"large:latest": 20 * GB}
    with pytest.raises(ConfigError, match=r"llama3\.2:3b"):
        judge("a", data, out, judge="large")
    server.loaded = ["large:latest"]
    assert judge("a", data, out, judge="large").asked == 4


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    path.write_text('{"key": "a"}\n{"no": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        Ledger(path)


def test_a_person_rates_blind_and_goes_on_later(data: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "rated.jsonl", []

    def ask(text: str) -> str:
        shown.append(text)
        if len(shown) == 3:
            return "q"
        return "1" if "[1] b" in text else "2"  # b, wherever it stands

    found = rate(["a", "b"], data, out, ask=ask)
    assert (found.items, found.models[0].scores[WINS].value) == (2, 1.0)
    again = rate(["a", "b"], data, out, ask=lambda text: shown.append(text) or "=")  # type: ignore[func-returns-value]
    assert (again.items, again.models[0].scores[WINS].value) == (4, 0.75)
    assert len(shown) == 5  # the two that were answered are not asked again
    firsts = {"[1] b" in text for text in shown}
    assert firsts == {True, False}
    always_b = rate(
        ["a", "b"], data, tmp_path / "b.jsonl", ask=lambda text: "1" if "[1] b" in text else "2"
    )
    assert (always_b.items, always_b.models[0].scores[WINS].value) == (4, 1.0)
    assert not any("against" in text for text in shown)
    with pytest.raises(ConfigError):
        rate(["a", "b"], data, tmp_path / "none.jsonl", ask=lambda _: "q")
    equal = rate(["same", "same"], data, tmp_path / "equal.jsonl", ask=unasked)
    assert equal.models[0].scores[WINS].value == 0.5


def unasked(text: str) -> str:
    raise AssertionError(text)


def test_the_command_runs_judges_and_people(
    server: StandIn,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = str(data.with_name("out.jsonl"))
    asked = ["evaluate", "a", "b", "--data", str(data), "--out", out]
    assert main([*asked, "--task", "judge", "--judge", "x", "--judge-url", server.url]) == 0
    said = capsys.readouterr().out
    for part in ("50.0", "{answer}", "8 questions", "80 tokens"):
        assert part in said
    monkeypatch.setattr("builtins.input", lambda: "1")
    assert main([*asked, "--task", "human", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 4
    assert main([*asked, "--task", "judge"]) == 2
    assert "--judge" in capsys.readouterr().err
