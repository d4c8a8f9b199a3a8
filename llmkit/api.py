"""What the commands do, one function each, for notebooks and scripts.

    from llmkit.api import train, finetune_instruct, export, verify, compare, generate

Progress goes to stderr, results come back as frozen dataclasses; `comparison_table`,
`proof_table`, `size_quality_figure` and `write_report` show them as the commands do. Wherever
a function says Path, a string will do, and one path where it says several.
"""

from llmkit.threads import wait_without_spinning

wait_without_spinning()  # counts only before torch is imported

from llmkit.demo import demo as _demo
from llmkit.export.budget import Budget
from llmkit.export.convert import export as _export
from llmkit.export.deploy import deploy as _deploy
from llmkit.export.doctor.examine import doctor as _doctor
from llmkit.export.imatrix import make_imatrix as _make_imatrix
from llmkit.export.inspection import inspect as _inspect
from llmkit.export.measure import compare as _compare
from llmkit.export.parity.verify import verify as _verify
from llmkit.export.plot import size_quality_figure
from llmkit.export.recipe import Recipe
from llmkit.export.report import write_report as _write_report
from llmkit.export.requantize import requantize as _requantize
from llmkit.export.running import generate as _generate
from llmkit.export.tables import comparison_table, export_table, proof_table
from llmkit.files import taking_strings
from llmkit.finetuning.classify import finetune_classify as _finetune_classify
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.distill import finetune_distill as _finetune_distill
from llmkit.finetuning.instruct import finetune_instruct as _finetune_instruct
from llmkit.finetuning.prefer import finetune_prefer as _finetune_prefer
from llmkit.generation import Sampling
from llmkit.model.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import prompt_format
from llmkit.training import train as _train

compare = taking_strings(_compare)
demo = taking_strings(_demo)
deploy = taking_strings(_deploy)
doctor = taking_strings(_doctor)
export = taking_strings(_export)
finetune_classify = taking_strings(_finetune_classify)
finetune_distill = taking_strings(_finetune_distill)
finetune_instruct = taking_strings(_finetune_instruct)
finetune_prefer = taking_strings(_finetune_prefer)
generate = taking_strings(_generate)
inspect = taking_strings(_inspect)
make_imatrix = taking_strings(_make_imatrix)
requantize = taking_strings(_requantize)
train = taking_strings(_train)
verify = taking_strings(_verify)
write_report = taking_strings(_write_report)

__all__ = [
    "Budget",
    "FinetuneConfig",
    "LoRAConfig",
    "Recipe",
    "Sampling",
    "compare",
    "comparison_table",
    "demo",
    "deploy",
    "doctor",
    "export",
    "export_table",
    "finetune_classify",
    "finetune_distill",
    "finetune_instruct",
    "finetune_prefer",
    "generate",
    "inspect",
    "make_imatrix",
    "prompt_format",
    "proof_table",
    "requantize",
    "size_quality_figure",
    "train",
    "verify",
    "write_report",
]
