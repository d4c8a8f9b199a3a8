"""What every tab is given, and what tabs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from llmkit.page.finding import Finding, Found, Kind, find_models, ollama_models
from llmkit.page.models import ModelCache

_SECONDS_OF_A_LIST = 10  # a new file shows after that at the latest


@dataclass(frozen=True)
class Context:
    """The folder of the page, the models below it, and the models in memory."""

    folder: Path
    finding: Finding
    models: ModelCache
    faq: Path | None = None  # a file of questions and answers

    def of_kind(self, *kinds: Kind, with_ollama: bool = False) -> list[Found]:
        """The models of some kinds; those of Ollama may be of any."""
        return [
            model
            for model in self.finding.models
            if model.kind in kinds and (with_ollama or model.path is not None)
        ]

    def named(self, name: str) -> Found:
        """The model of a name."""
        return next(model for model in self.finding.models if model.name == name)


def open_context(folder: Path, faq: Path | None = None) -> Context:
    """What this session is given. Raises ConfigError where there is no such folder."""
    files = _files(folder)
    finding = Finding((*files.models, *_ollama()), files.refused)
    return Context(folder, finding, _models(folder), faq)


def choose(
    label: str, models: Sequence[Found], default: Sequence[str], key: str, most: int
) -> list[str]:
    """Names of one model or more."""
    return st.multiselect(
        label,
        [model.name for model in models],
        default,
        key=key,
        max_selections=most,
        placeholder="Choose models",
        persist_state="session",
    )


def choose_one(label: str, models: Sequence[Found], key: str) -> Found:
    """One model; the first unless another is chosen."""
    names = [model.name for model in models]
    name = st.selectbox(label, names, key=key, persist_state="session")
    return models[names.index(name) if name in names else 0]


def say_waiting(place: DeltaGenerator) -> None:
    """Tell that another session runs the model. A click of the user ends the wait here."""
    place.caption("Waiting for another session to finish with the model")


@st.cache_data(ttl=_SECONDS_OF_A_LIST, show_spinner=False)
def _files(folder: Path) -> Finding:
    return find_models(folder)


@st.cache_data(ttl=_SECONDS_OF_A_LIST, show_spinner=False)
def _ollama() -> list[Found]:
    return ollama_models()


@st.cache_resource(show_spinner=False)
def _models(folder: Path) -> ModelCache:
    return ModelCache(folder)
