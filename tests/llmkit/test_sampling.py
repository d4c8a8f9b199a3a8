"""The chain of samplers, against the probabilities by hand and llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import CheckpointError, ConfigError
from llmkit.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.15, 0.05, 0.3]).log()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.15, 0.05, 0.3]),
        ({"temperature": 1.0, "top_k": 9, "top_p": 1.0}, [0.5, 0.15, 0.05, 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0, 0, 0.375]),
        ({"temperature": 1.0, "top_p": 0.49}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.51}, [0.625, 0, 0, 0.375]),
        ({"temperature": 1.0, "top_p": 0.81}, [0.5 / 0.95, 0.15 / 0.95, 0, 0.3 / 0.95]),
        # top-p counts what top-k has left: 0.625 of two tokens
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
        # temperature comes last: it does not change what top-p and min-p keep
        ({"temperature": 9.0, "top_p": 0.49}, [1, 0, 0, 0]),
        ({"temperature": 9.0, "min_p": 0.9}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.5}, [0.625, 0, 0, 0.375]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        ({"temperature": 1e9}, [0.25, 0.25, 0.25, 0.25]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ],
)
def test_probabilities_are_those_of_the_settings(
    sampling: dict[str, Any], expected: list[float]
) -> None:
    found = our_distribution(Sampling(**sampling), LOGITS, [])
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    sampling = Sampling(0.5, min_p=0.2)
    drawn_from, generator = sampling.distribution(LOGITS), sampling.generator()
    n = 2000
    found = torch.tensor([drawn_from.draw(generator) for _ in range(n)]).bincount(minlength=4) / n
    wanted = our_distribution(sampling, LOGITS, [])
    # Five standard deviations.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.06)
    assert found[2] == wanted[2] == 0


class OnMPS(torch.Tensor):
    """A tensor of a device that has no float64."""

    def double(self) -> torch.Tensor:
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_a_device_without_float64_is_sampled_from() -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(top_p=0.9), Sampling(temperature=0)):
        wanted = sampling.distribution(logits)
        for found, each in zip(
            sampling.distribution(logits.as_subclass(OnMPS)), wanted, strict=True
        ):
            assert torch.equal(found, each)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperature": -0.1}, "temperature .*not -0.1$"),
        ({"temperature": float("nan")}, "temperature .*not nan$"),
        ({"temperature": float("inf")}, "temperature .*not inf$"),
        ({"top_k": 0}, "top-k .*not 0$"),
        ({"top_k": -1}, "top-k .*not -1$"),
        ({"top_p": 0.0}, "top-p .*not 0.0$"),
        ({"top_p": 1.01}, "top-p .*not 1.01$"),
        ({"top_p": float("nan")}, "top-p .*not nan$"),
        ({"min_p": -0.1}, "min-p .*not -0.1$"),
        ({"min_p": 1.5}, "min-p .*not 1.5$"),
        ({"repeat_penalty": 0.0}, "repeat-penalty .*not 0.0$"),
        ({"repeat_penalty": float("nan")}, "repeat-penalty .*not nan$"),
        ({"repeat_last_n": -1}, "repeat-last-n .*not -1$"),
        ({"num_keep": -1}, "num-keep .*not -1$"),
        ({"stop": ("a", "")}, "stop "),
        ({"max_tokens": 0}, "max-tokens .*not 0$"),
        ({"seed": -1}, "seed .*not -1$"),
        ({"seed": 1 << 64}, "seed .*not 18446744073709551616$"),
    ],
)
def test_settings_without_a_meaning_are_refused(sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**sampling)


# --- llama.cpp's samplers -----------------------------------------------------------------------

N_VOCAB = 300
MIN_KEEP = 0


def llama_distribution(samplers: list[Any], logits: torch.Tensor, past: list[int]) -> torch.Tensor:
    """Probabilities (V,) after llama.cpp's samplers, which hear the past tokens first."""
    data = (llama_cpp.llama_token_data * len(logits))(
        *(llama_cpp.llama_token_data(i, logit, 0) for i, logit in enumerate(logits.tolist()))
    )
    candidates = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    for sampler in samplers:
        for token_id in past:
            llama_cpp.llama_sampler_accept(sampler, token_id)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
        llama_cpp.llama_sampler_free(sampler)
    kept = [candidates.data[i] for i in range(candidates.size)]
    probabilities = torch.tensor([each.logit for each in kept], dtype=torch.float64).softmax(0)
    found = torch.zeros(len(logits), dtype=torch.float64)
    found[[each.id for each in kept]] = probabilities
    return found


def our_distribution(sampling: Sampling, logits: torch.Tensor, past: list[int]) -> torch.Tensor:
    ids, probabilities = sampling.distribution(logits, past)
    return torch.zeros(len(logits), dtype=torch.float64).scatter(0, ids, probabilities)


# In the order of `samplers` in llama.cpp's common.h, which llama-server and Ollama use.
CHAIN: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "penalties": (
        {"repeat_penalty": 1.4, "repeat_last_n": 40},
        lambda: llama_cpp.llama_sampler_init_penalties(N_VOCAB, 40, 1.4, 0.0, 0.0),
    ),
    "top_k": ({"top_k": 120}, lambda: llama_cpp.llama_sampler_init_top_k(120)),
    "top_p": ({"top_p": 0.93}, lambda: llama_cpp.llama_sampler_init_top_p(0.93, MIN_KEEP)),
    "min_p": ({"min_p": 0.04}, lambda: llama_cpp.llama_sampler_init_min_p(0.04, MIN_KEEP)),
    "temperature": ({"temperature": 0.7}, lambda: llama_cpp.llama_sampler_init_temp(0.7)),
}


@pytest.mark.parametrize("seed", range(5))
def test_each_step_of_the_chain_gives_llama_cpps_probabilities(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(N_VOCAB, generator=generator)
    past = torch.randint(N_VOCAB, (70,), generator=generator).tolist()
    settings: dict[str, Any] = {"temperature": 1.0}
    steps, n_kept = [], []
    for setting, make in CHAIN.values():
        settings |= setting
        steps.append(make)
        found = our_distribution(Sampling(**settings), logits, past)
        wanted = llama_distribution([step() for step in steps], logits, past)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)
        n_kept.append(int((found > 0).sum()))
    assert n_kept[0] == N_VOCAB > n_kept[1] == 120 > n_kept[2] > n_kept[3] > 3  # steps that cut


@pytest.mark.parametrize("name", CHAIN)
def test_each_step_alone_gives_llama_cpps_probabilities(name: str) -> None:
    logits = torch.randn(N_VOCAB, generator=torch.Generator().manual_seed(9))
    past = list(range(0, N_VOCAB, 7))
    setting, make = CHAIN[name]
    found = our_distribution(Sampling(**{"temperature": 1.0, **setting}), logits, past)
    torch.testing.assert_close(
        found, llama_distribution([make()], logits, past), rtol=1e-5, atol=1e-9
    )


@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=30, unique=True),
    past=st.lists(st.integers(0, 1), max_size=5),
    penalty=st.sampled_from([0.8, 1.0, 1.1, 2.0]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.integers(1, 40),
    min_p=st.sampled_from([0.0, 0.011, 0.33, 1.0]),
)
def test_chains_of_any_settings_agree(
    logits: list[int], past: list[int], penalty: float, temperature: float, top_k: int, min_p: float
) -> None:
    values = torch.tensor(logits, dtype=torch.float32) / 10.3
    sampling = Sampling(
        temperature, top_k=top_k, min_p=min_p, repeat_penalty=penalty, repeat_last_n=4
    )
    chain = [
        llama_cpp.llama_sampler_init_penalties(len(logits), 4, penalty, 0.0, 0.0),
        llama_cpp.llama_sampler_init_top_k(top_k),
        llama_cpp.llama_sampler_init_min_p(min_p, MIN_KEEP),
        llama_cpp.llama_sampler_init_temp(temperature),
    ]
    found = our_distribution(sampling, values, past)
    wanted = llama_distribution(chain, values, past)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_penalties_look_at_the_last_tokens_only() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0])
    sampling = Sampling(1.0, repeat_penalty=2.0, repeat_last_n=2)
    for past, penalized in (([0, 1, 2], [2, 0.5, -2]), ([2, 2, 0], [1, 1, -2]), ([], [2, 1, -1])):
        wanted = torch.tensor(penalized, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(our_distribution(sampling, logits, past), wanted)
    assert logits.tolist() == [2, 1, -1]


def test_nan_is_refused() -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        Sampling().distribution(torch.tensor([0.0, float("nan")]))
