"""What the commands do, one function each, for notebooks and scripts.

    from llmkit.api import train, finetune_instruct, export, verify, compare, generate

Progress goes to stderr, results come back as frozen dataclasses; `comparison_table`,
`proof_table`, `size_quality_figure` and `write_report` show them as the commands do. Paths may be
strings.
"""

from llmkit.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()  # counts only before torch is imported

from llmkit.data.known_sets import get_data
from llmkit.data.prepared import prepare_data
from llmkit.data.tokenizers import tokenizer_statistics, train_tokenizer
from llmkit.demo import demo
from llmkit.evaluation.evaluate import evaluate
from llmkit.evaluation.human import BlindTest, rate
from llmkit.evaluation.judge import judge
from llmkit.evaluation.labelling import label_probabilities
from llmkit.evaluation.results import find_results
from llmkit.evaluation.tables import evaluation_figure, evaluation_tables
from llmkit.export.compare import compare
from llmkit.export.convert import export
from llmkit.export.deploy.deploy import deploy
from llmkit.export.doctor.examine import doctor
from llmkit.export.evaluation.along import divergence_along
from llmkit.export.inspection import inspect
from llmkit.export.llamacpp.differences import differences
from llmkit.export.llamacpp.inside import look_inside, nearest_tokens
from llmkit.export.llamacpp.runners import (
    generate,
    generate_texts,
    open_runner,
    stream_tokens,
)
from llmkit.export.quantization.budget import Budget
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import make_imatrix
from llmkit.export.quantization.requantize import requantize
from llmkit.export.report.page import write_report
from llmkit.export.report.plots import size_quality_figure
from llmkit.export.report.runs import loss_figure, runs_table
from llmkit.export.report.tables import comparison_table, export_table, proof_table
from llmkit.export.to_hf import export_to_hf
from llmkit.faq import Faq
from llmkit.finetuning.classify import finetune_classify
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.distill import finetune_distill
from llmkit.finetuning.instruct import finetune_instruct
from llmkit.finetuning.prefer import finetune_prefer
from llmkit.generation import Candidate, GeneratedToken
from llmkit.importing.deploy_source import deploy_source
from llmkit.importing.facts import ImportOptions
from llmkit.importing.importer import import_checkpoint
from llmkit.importing.verify_source import verify_source as verify
from llmkit.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import prompt_format
from llmkit.report.write import report
from llmkit.sampling import Sampling
from llmkit.training import dry_run, train
from llmkit.training.runs import find_runs

__all__ = [
    "BlindTest",
    "Budget",
    "Candidate",
    "Faq",
    "FinetuneConfig",
    "GeneratedToken",
    "ImportOptions",
    "LoRAConfig",
    "QuantConfig",
    "Sampling",
    "compare",
    "comparison_table",
    "demo",
    "deploy",
    "deploy_source",
    "differences",
    "divergence_along",
    "doctor",
    "dry_run",
    "evaluate",
    "evaluation_figure",
    "evaluation_tables",
    "export",
    "export_table",
    "export_to_hf",
    "find_results",
    "find_runs",
    "finetune_classify",
    "finetune_distill",
    "finetune_instruct",
    "finetune_prefer",
    "generate",
    "generate_texts",
    "get_data",
    "import_checkpoint",
    "inspect",
    "judge",
    "label_probabilities",
    "look_inside",
    "loss_figure",
    "make_imatrix",
    "nearest_tokens",
    "open_runner",
    "prepare_data",
    "prompt_format",
    "proof_table",
    "rate",
    "report",
    "requantize",
    "runs_table",
    "size_quality_figure",
    "stream_tokens",
    "tokenizer_statistics",
    "train",
    "train_tokenizer",
    "verify",
    "write_report",
]
