"""The model `llmkit` of lm-evaluation-harness (extra `harness`).

lm_eval finds it by the entry point in pyproject.toml. lm_eval 0.4.13 does not look for entry points
yet; `python -m llmkit.evaluation.harness` is its command line with this model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from weakref import finalize

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmkit.console import progress
from llmkit.errors import ConfigError
from llmkit.evaluation.models import MAX_ANSWER, Continuation, open_model, with_log_probabilities
from llmkit.export.llamacpp.devices import Backend
from llmkit.sampling import Sampling

NAME = "llmkit"
Asked = tuple[object, list[int], list[int]]  # what lm_eval calls it, ids before, ids to score


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A checkpoint folder or a GGUF file, for `lm_eval --model llmkit`."""

    def __init__(
        self,
        path: str | None = None,
        gguf: str | None = None,
        backend: Backend = "cpu",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open `path` (a checkpoint folder) or `gguf` (a file, which llama.cpp runs on `backend`).

        lm_eval always gives batch sizes and a device; they are not used. Batches are as large as is
        fast, and a checkpoint runs on a GPU if there is one. Raises LlmkitError for a model that
        cannot be opened.
        """
        super().__init__()
        model = path or gguf
        if model is None or (path and gguf):
            raise ConfigError("give --model_args path=FOLDER or gguf=FILE")
        self._open = ExitStack()
        finalize(self, self._open.close)
        self._model = with_log_probabilities(self._open.enter_context(open_model(model, backend)))
        self._runner = self._model.runner

    @property
    def eot_token_id(self) -> int:
        """The id that texts begin with."""
        return self._runner.begun([])[0]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Ids of a text; with the token before them that a GGUF file may ask for."""
        ids = self._runner.encode(string)
        return self._runner.begun(ids) if ids and add_special_tokens is not False else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Asked], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of ids after others, and whether greedy decoding gives them.

        What does not fit the context loses its beginning, as with lm_eval's own models.
        """
        size = self._runner.context_length + 1  # the last id is only foretold
        by_prefix: dict[tuple[int, ...], list[int]] = {}
        for place, (_name, before, ids) in enumerate(requests):
            if not 0 < len(ids) < size:
                raise ConfigError(
                    f"a continuation of {len(ids)} tokens; expected 1 to {size - 1}, the context"
                )
            by_prefix.setdefault(tuple(before[-(size - len(ids)) :]), []).append(place)
        found: dict[int, Continuation] = {}
        with progress("lm_eval", len(requests), "log-likelihoods") as bar:
            for prefix in sorted(by_prefix):  # neighbours share the cache of what they begin with
                places = by_prefix[prefix]
                scores = self._model.scored(prefix, [requests[place][2] for place in places])
                found.update(zip(places, scores, strict=True))
                bar.update(len(found))
        scores = [found[place] for place in range(len(requests))]
        answers = [(one.log_probability, one.is_greedy) for one in scores]
        for request, answer in zip(requests, answers, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, in lm_eval's windows."""
        owners: list[int] = []
        windows: list[Asked] = []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._runner.context_length,
                context_len=1,
            ):
                owners.append(number)
                windows.append((None, *make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to a stop text or token, several at once.

        Raises ConfigError for a task that draws tokens, or asks for more than the context holds.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}  # by length and stop texts
        for place, request in enumerate(requests):
            wanted = normalize_gen_kwargs(request.args[1], MAX_ANSWER)
            if wanted["do_sample"]:
                raise ConfigError(
                    f"the task {request.task_name} draws tokens at random, llmkit only takes the "
                    "most probable ones; add --gen_kwargs do_sample=False"
                )
            key = wanted["max_gen_toks"], tuple(filter(None, wanted["until"]))
            groups.setdefault(key, []).append(place)
        found: dict[int, str] = {}
        for (max_tokens, until), places in groups.items():
            texts = [requests[place].args[0] for place in places]
            found.update(zip(places, self._generated(texts, max_tokens, until), strict=True))
        for place, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[place])
        return [found[place] for place in range(len(requests))]

    def _generated(self, texts: Sequence[str], max_tokens: int, until: Sequence[str]) -> list[str]:
        room = self._runner.context_length - max_tokens
        if room < 1:
            raise ConfigError(
                f"the task asks for {max_tokens} tokens, the model's context has "
                f"{self._runner.context_length}; add --gen_kwargs max_gen_toks=N"
            )
        prompts = [self._runner.begun(self.tok_encode(text))[-room:] for text in texts]
        sampling = Sampling(temperature=0, max_tokens=max_tokens, stop=tuple(until))
        return self._runner.answers(prompts, sampling)


def main() -> None:
    """The command line of lm_eval, which then knows the model `llmkit`."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=HarnessModel)
    cli_evaluate()


if __name__ == "__main__":
    main()
