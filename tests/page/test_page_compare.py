"""The tabs Compare and Look inside in Streamlit's own test runner."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the extra page is not installed")

import pyarrow.ipc
import streamlit as st
from streamlit.testing.v1 import AppTest
from test_page_tabs import bodies, no_ollama, tab, texts  # noqa: F401  (no_ollama is a fixture)

from llmkit.api import compare, divergence_along, find_results, look_inside, nearest_tokens
from llmkit.export.results import keep_result
from llmkit.page.charts import size_quality_chart
from llmkit.page.style import visible

SMALL = "export/answers-q4_0.gguf"


@pytest.fixture
def folder(page_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be written into, without the models that the tabs would only list."""
    kept = shutil.ignore_patterns("labels*", "optimizer*", "results.json")
    return Path(shutil.copytree(page_folder, tmp_path / "models", ignore=kept))


def section(module: str, folder: Path, name: str) -> AppTest:
    shown = tab(module, folder)
    key = f"{module}_section"
    return shown.segmented_control(key=key).set_value(name).run()


def test_sizes_are_measured_once_and_then_read(folder: Path) -> None:
    (folder / "other").mkdir()
    shutil.copy(folder / SMALL, folder / "other")  # of the same name, and not measured
    shown = tab("compare", folder)
    assert not shown.dataframe
    assert shown.selectbox(key="compare_reference").value == "answers"
    assert shown.multiselect(key="compare_files").value == [SMALL]
    shown.multiselect(key="compare_files").set_value([SMALL]).run()
    shown.button(key="compare_measure").click().run()
    assert not shown.error
    (saved,) = find_results(folder).comparisons.values()
    measures, types = (table.value for table in shown.dataframe)
    cells = dict(zip(measures["measure"], measures["answers-q4_0.gguf"], strict=True))
    assert cells["mean KL"] == f"{saved.rows[0].mean_kl:.2e}"
    assert set(types["type"]) == {"q4_0", "f32"}
    assert (types["file"] == SMALL).all()
    again = tab("compare", folder)
    assert len(again.dataframe) == 2


def test_the_chart_names_each_file_and_the_scores_are_tables(folder: Path) -> None:
    compared = compare(
        folder / "answers", [folder / SMALL, folder / "export/answers-f32.gguf"], max_tokens=64
    )
    values = size_quality_chart(compared).to_dict()["data"]["values"]
    assert {point["type"]: point["KL"] for point in values} == {
        row.quant: row.mean_kl for row in compared.rows if row.mean_kl > 0
    }
    score = {"value": 0.5, "interval": [0.4, 0.6], "difference": None, "difference_interval": None}
    scores = {"accuracy": score}
    model = {"model": "m", "scores": scores, "groups": {"home": scores}, "ties": 0}
    evaluation = {
        "task": "village-choices", "source": "", "items": 4, "left_out": 0, "chance": 0.25,
        "lower_is_better": False, "models": [{**model, "confusion": None}],
    }  # fmt: skip
    keep_result("evaluations", {}, [str(folder / "base")], evaluation)
    shown = tab("compare", folder)
    *_, table = (frame.value for frame in shown.dataframe)
    assert list(table["group"]) == ["all", "home"]
    assert list(table["accuracy"]) == [0.5, 0.5]


def test_the_kl_along_a_text_is_that_of_the_api(folder: Path) -> None:
    shown = section("compare", folder, "Along a text")
    assert shown.selectbox(key="along_original").value == "answers"
    others = [SMALL, "base"]
    shown.multiselect(key="along_others").set_value(others).run()
    shown.text_area(key="along_text").set_value("Once there was a <b>cook").run()
    shown.button(key="along_start").click().run()
    assert not shown.error
    text = shown.text_area(key="along_text").value
    wanted, same = divergence_along(folder / "answers", [folder / name for name in others], text)
    for name, tokens in zip(others, (wanted, same), strict=True):
        mean = sum(token.kl for token in tokens) / len(tokens)
        assert any(name in one and f"{mean:.2e}" in one for one in texts(shown))
    tinted = bodies(shown)[-2]
    assert tinted.count("<span") == len(wanted)
    assert "<b>" not in tinted
    n_other = sum(token.original.id != token.other.id for token in wanted)
    assert tinted.count("differs") == n_other


def test_a_proof_is_shown_as_its_page_and_not_of_a_changed_file(folder: Path) -> None:
    shown = section("compare", folder, "Proofs")
    assert not shown.error
    (page,) = shown.get("iframe")
    assert "28 tensors are equal" in str(page.proto)
    with (folder / SMALL).open("ab") as file:
        file.write(b"\0")
    st.cache_data.clear()  # the list of files is kept for some seconds
    shown = section("compare", folder, "Proofs")
    assert not shown.get("iframe")


def test_curves_have_every_run_and_its_last_step(folder: Path) -> None:
    metrics = folder / "base/training/metrics.jsonl"
    *earlier, last = metrics.read_text().splitlines()
    changed = json.dumps({**json.loads(last), "val_loss": 1.25})
    metrics.write_text("\n".join([*earlier, changed, '{"step": 40, "tok']))
    shown = section("compare", folder, "Training")
    (table,) = (frame.value for frame in shown.dataframe)
    rows = {row["run"]: row for row in table.to_dict("records")}
    assert (rows["base"]["step"], rows["base"]["validation loss"]) == (30, 1.25)
    assert (rows["answers"]["status"], rows["answers"]["of"]) == ("finished", 30)


def test_a_blind_test_shows_no_names_and_keeps_the_choices(folder: Path) -> None:
    asked = [{"question": f"Who is number {n}?", "answer": "He."} for n in range(3)]
    (folder / "questions.json").write_text(json.dumps(asked))
    shown = section("compare", folder, "Blind test")
    assert shown.selectbox(key="blind_file").options == ["questions.json"]
    shown.multiselect(key="blind_models").set_value(["base", "answers"]).run()
    shown.button(key="blind_start").click().run()
    assert not shown.error
    assert shown.text[0].value in {one["question"] for one in asked}
    body = " ".join([*texts(shown)[1:], *(one.value for one in shown.subheader)])
    assert "base" not in body
    for n in range(1, 4):
        shown.button(key="blind_=").click().run()
        assert len((folder / "ratings.jsonl").read_text().splitlines()) == n
    assert shown.metric[0].value.startswith("50%")
    assert shown.metric[0].label == "answers against base"


def test_questions_outside_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps([{"question": "a", "answer": "b"}]))
    (folder / "link.json").symlink_to(outside)
    shown = section("compare", folder, "Blind test")
    shown.multiselect(key="blind_models").set_value(["base", "answers"]).run()
    shown.button(key="blind_start").click().run()
    assert "link.json" in shown.error[0].value


def test_look_inside_shows_what_the_api_computes(folder: Path) -> None:
    shown = tab("inside", folder)
    shown.selectbox(key="inside_model").set_value(SMALL).run()
    shown.text_area(key="inside_text").set_value("The <b>cook").run()
    assert not shown.error
    found = look_inside(folder / SMALL, "The <b>cook")
    shown.slider(key="inside_layer").set_value(2).run()
    maps = shown.get("vega_lite_chart")
    n = len(found.tokens)
    for head, weights in enumerate(found.attention[1]):
        cells = pyarrow.ipc.open_stream(maps[head].proto.data.data).read_all().to_pylist()
        assert len(cells) == n * (n + 1) // 2
        for cell in cells:
            row, column = (int(cell[name].split()[0]) - 1 for name in ("from", "to"))
            assert cell["weight"] == pytest.approx(float(weights[row, column]), abs=1e-4)

    shown.segmented_control(key="inside_section").set_value("After each layer").run()
    lens = bodies(shown)[-1]
    assert lens.count("<td") == len(found.layers) * n
    assert "<b>" not in lens
    top = re.findall(r"<td[^>]*>([^<]*)</td>", lens)[n - 1]  # the top row, its last token
    assert top == visible(found.layers[-1][-1][0].token).replace("<", "&lt;")

    shown.segmented_control(key="inside_section").set_value("Neighbours of a token").run()
    token = shown.selectbox(key="inside_token").value
    near = nearest_tokens(folder / SMALL, token, 12)
    assert list(shown.dataframe[0].value["token"]) == [visible(one.text) for one in near]


def test_a_long_text_is_cut_and_a_line_says_so(folder: Path) -> None:
    shown = tab("inside", folder)
    shown.text_area(key="inside_text").set_value("The cook. " * 60).run()
    assert any("48" in one for one in texts(shown))
    assert not shown.error
