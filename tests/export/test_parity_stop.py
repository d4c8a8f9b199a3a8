"""How many answers end in llama.cpp, where all of them end in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
from deployable import QUESTIONS, answering_checkpoint
from verify_targets import written

from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify import stop_check as stop_module
from llmkit.export.verify.generation_check import greedy_ids
from llmkit.export.verify.stop_check import stop_check
from llmkit.export.verify.target import VerifyTarget
from llmkit.generation import generate_ids
from llmkit.sampling import Sampling


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> VerifyTarget:
    folder = tmp_path_factory.mktemp("stop")
    return written(answering_checkpoint(folder / "c"), folder / "m.gguf")


@pytest.fixture(scope="module")
def llama(target: VerifyTarget) -> Iterator[LlamaCpp]:
    with LlamaCpp(target.file.path) as llama:
        yield llama


@pytest.mark.parametrize(
    ("n_ended", "fault"),
    [
        (5, None),
        (3, None),
        (2, "50%"),
        (1, "50%"),
        (0, "never stops"),
    ],
)
def test_half_of_what_ends_in_pytorch_has_to_end_in_llama_cpp(
    n_ended: int,
    fault: str | None,
    target: VerifyTarget,
    llama: LlamaCpp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts: list[Sequence[int]] = []

    def some_run_on(llama: LlamaCpp, prompt: Sequence[int], n_new: int) -> list[int]:
        prompts.append(prompt)
        ids = greedy_ids(llama, prompt, n_new)
        return ids if len(prompts) <= n_ended else ids[:-1]

    monkeypatch.setattr(stop_module, "greedy_ids", some_run_on)
    check = stop_check(target, llama, None)
    assert len(prompts) == len(QUESTIONS) == 5
    assert f"5 of 5 held-out answers end in PyTorch, {n_ended} in llama.cpp" in check.detail
    assert check.passed == (fault is None)
    assert fault is None or fault in check.detail


def test_an_answer_that_never_ended_is_not_missed() -> None:
    assert stop_module._ending_fault(in_torch=1, in_llama=1) is None
    assert stop_module._ending_fault(in_torch=0, in_llama=1) is None
    assert stop_module._ending_fault(in_torch=0, in_llama=0) is not None
    assert stop_module._ending_fault(in_torch=99, in_llama=1) is not None


def test_what_pytorch_answers_does_not_depend_on_the_draft(target: VerifyTarget) -> None:
    source = target.checkpoint
    model, stops = source.load_model(), source.stop_ids
    for prompt in stop_module._asked(source.folder, source.sha256).prompts:
        answer = list(islice(generate_ids(model, prompt, Sampling(temperature=0), stops), 60))
        n = len(answer)
        drafts = ([*answer, source.end_id], answer, answer[: n // 2], [*answer[:-1], 5, 6], [7] * n)
        for draft in drafts:
            assert stop_module._ends(model, prompt, draft, n + 1, stops), draft
            assert not stop_module._ends(model, prompt, draft[:n], n, stops), draft
