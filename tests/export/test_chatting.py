"""Conversations with a checkpoint, a GGUF file and a model of an Ollama: they go the same way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from deployable import answering_checkpoint, exported, stammering_checkpoint
from finetuned import as_classifier
from gguf_surgery import make_checkpoint
from ollama_servers import real_ollama, stand_in
from ollama_stand_in import StandIn, Trouble
from ollama_stand_in_models import Stored

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.cli.main import main
from llmkit.errors import ConfigError, OllamaError, PromptTooLongError
from llmkit.export.deploy.deploy import deploy
from llmkit.export.llamacpp.chat import FORGOTTEN, chat, open_reply
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.store import delete
from llmkit.modelfiles.reading import read_modelfile
from llmkit.sampling import Sampling
from llmkit.tokenizer_training import train_bpe

NAME = "llmkit-test-chat"
GREEDY = Sampling(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return answering_checkpoint(tmp_path_factory.mktemp("chat") / "c")


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("chat") / "out", "f32")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as found:
        modelfile = read_modelfile(folder / "Modelfile").modelfile
        found.models[f"{NAME}:latest"] = Stored(next(folder.glob("*.gguf")), modelfile)
        yield found


@pytest.fixture(scope="module", params=["stand-in", "real Ollama"])
def url(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "stand-in":
        yield request.getfixturevalue("server").url
        return
    with real_ollama(tmp_path_factory.mktemp("ollama")) as found:
        assert deploy(folder, NAME, host=found).passed
        yield found
        with OllamaServer(found) as server, suppress(OllamaError):
            delete(server.http, NAME)


def conversation(
    questions: list[str],
    model: Path | None = None,
    host: str | None = None,
    system: str = "",
    sampling: Sampling = GREEDY,
) -> tuple[str, list[str]]:
    """All that was said, and the notes."""
    notes: list[str] = []
    with open_reply(model, NAME if host else None, host, sampling) as reply:
        return "".join(chat(reply, questions, system, notes.append)), notes


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_ollama_says_what_checkpoint_and_file_say(
    system: str, url: str, checkpoint: Checkpoint, folder: Path
) -> None:
    questions = ["What merge?", "Which?", "More words?"]
    wanted = conversation(questions, checkpoint.folder, system=system)
    assert conversation(questions, next(folder.glob("*.gguf")), system=system) == wanted
    assert conversation(questions, host=url, system=system) == wanted
    assert wanted[0].strip()


def test_an_answer_ends_before_a_stop_string_everywhere(url: str, checkpoint: Checkpoint) -> None:
    asked = ("What merge?", "Which?", "More words?", "words")
    answers = {text: conversation([text], checkpoint.folder)[0] for text in asked}
    questions = [max(asked, key=lambda text: len(answers[text]))]
    whole = answers[questions[0]]
    stop = whole[1:3]
    sampling = Sampling(temperature=0, max_tokens=20, stop=("never", stop))
    wanted = conversation(questions, checkpoint.folder, sampling=sampling)
    assert wanted[0] == whole[: whole.index(stop)] + "\n"
    assert conversation(questions, host=url, sampling=sampling) == wanted


def test_an_answer_comes_in_pieces(url: str) -> None:
    with open_reply(None, NAME, url, Sampling(temperature=0)) as reply:
        pieces = list(chat(reply, ["More words?", "Which?"], "", print))
    assert len(pieces) > 4
    assert pieces.count("\n") == 2


def test_what_no_longer_fits_is_forgotten_in_each_in_the_same_place(
    url: str, checkpoint: Checkpoint
) -> None:
    questions = ["some more words to merge? " * n for n in (11, 12, 13, 12, 11, 13)]
    wanted = conversation(questions, checkpoint.folder)
    assert wanted[1].count(FORGOTTEN) >= 2
    assert conversation(questions, host=url) == wanted


def test_one_question_that_is_too_long_is_an_error(url: str, checkpoint: Checkpoint) -> None:
    for model, host in ((checkpoint.folder, None), (None, url)):
        with pytest.raises(PromptTooLongError, match="context"):
            conversation(["many words " * 100], model, host)


def test_an_answer_that_is_part_of_a_character_is_empty(server: StandIn, tmp_path: Path) -> None:
    made = stammering_checkpoint(tmp_path / "c")
    folder = exported(made, tmp_path / "out", "f32")
    gguf = next(folder.glob("*.gguf"))
    server.models["stammer:latest"] = Stored(gguf, read_modelfile(folder / "Modelfile").modelfile)
    for model, name in ((made.folder, None), (gguf, None), (None, "stammer")):
        sampling = Sampling(temperature=0, max_tokens=3)
        with open_reply(model, name, server.url if name else None, sampling) as reply:
            assert "".join(chat(reply, ["a", "b"], "", print)) == "\n\n"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    labels = ("ham", "spam")
    tokenizer = train_bpe(["some words to merge, some more words"], 280).with_tokens(words=labels)
    folder = tmp_path_factory.mktemp("classifier")
    base = make_checkpoint(folder / "base", tokenizer=tokenizer, tie_embeddings=False)
    return as_classifier(base, folder / "c", labels)


@pytest.mark.parametrize("where", ["PyTorch", "llama.cpp", "Ollama"])
def test_a_classifier_labels_each_text_by_itself(
    where: str, classifier: Checkpoint, server: StandIn, tmp_path: Path
) -> None:
    made = exported(classifier, tmp_path / "out", "f32")
    gguf = next(made.glob("*.gguf"))
    server.models["labels:latest"] = Stored(gguf, read_modelfile(made / "Modelfile").modelfile)
    model = {"PyTorch": classifier.folder, "llama.cpp": gguf, "Ollama": None}[where]
    name = None if model else "labels"
    texts = ["some words", "more merge", "to", "words words some", "merge, some", "e", "or", "m"]

    def labels(texts: list[str]) -> list[str]:
        sampling = Sampling(temperature=2)
        with open_reply(model, name, server.url if name else None, sampling) as reply:
            return "".join(chat(reply, texts, "", print)).splitlines()

    alone = [label for text in texts for label in labels([text])]
    assert set(alone) == {"ham", "spam"}
    assert labels(texts) == alone


def test_a_name_that_is_not_there_is_told_before_the_first_question(url: str) -> None:
    with (
        pytest.raises(OllamaError, match="model 'llmkit-test-nope:latest' not found"),
        open_reply(None, "llmkit-test-nope", url, GREEDY),
    ):
        pass


def test_an_answer_that_ends_without_a_reason_is_told(server: StandIn) -> None:
    server.trouble = Trouble(ends_silently=True)
    with pytest.raises(OllamaError, match="http"):
        conversation(["Which?"], host=server.url)
    server.trouble = Trouble()


def test_one_model_has_to_be_named(folder: Path) -> None:
    for model, ollama in ((None, None), (folder, NAME)):
        with (
            pytest.raises(ConfigError, match="--ollama"),
            open_reply(model, ollama, None, GREEDY),
        ):
            pass


def test_the_command_talks_with_ollama(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What merge?\nWhich?\n/bye\nmore\n"))
    words = ["chat", "--ollama", NAME, "--host", server.url, "--temperature", "0"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main([*words[:3], "--host", "127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err
