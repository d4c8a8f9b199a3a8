"""What an import did, as tables and lines."""

from __future__ import annotations

from rich.table import Table

from llmkit.console import command
from llmkit.importing.made import Import

REFERENCE_LINES = """\
    import numpy, torch              # in the notebook that has your model
    tokens = torch.randint(0, VOCAB_SIZE, (2, CONTEXT_LENGTH))
    with torch.no_grad():
        logits = model.eval()(tokens)    # (2, T, V); where it returns a tuple, take [0]
    numpy.savez("reference.npz", tokens=tokens.numpy(), logits=logits.float().numpy())"""


def import_tables(done: Import) -> list[Table]:
    """What was recognised, what went where, and what the file does not say."""
    config = done.config
    where = Table(title=f"{done.recognised} ({done.container})", title_justify="left")
    for heading in ("source", "becomes", "how"):
        where.add_column(heading, overflow="fold")
    for step in done.steps:
        where.add_row(step.source, step.target, step.done)
    facts = Table(
        title=f"{config.n_layer} layers, {config.n_embd} wide, {config.context_length} positions, "
        f"{config.vocab_size:,} tokens",
        title_justify="left",
    )
    for heading in ("not in names and shapes", "value", "from"):
        facts.add_column(heading, overflow="fold")
    for name, fact in done.facts:
        if fact.value is not False:  # a switch that is off
            facts.add_row(name, str(fact.value), fact.origin)
    facts.add_row("tokenizer", f"{config.vocab_size:,} tokens", done.tokenizer)
    return [where, facts]


def proof_lines(done: Import) -> list[str]:
    """What was lost, and what is proved."""
    lines = [f"note: {note}" for note in done.notes]
    if done.activation_cost is not None:
        lines.append(
            f"note: the model has the exact GELU, llama.cpp the tanh formula: logits differ by up "
            f"to {done.activation_cost:.1e} there"
        )
    if done.proof is not None:
        lines.append(
            f"proved: the logits of {done.proof.n_positions} positions equal the reference "
            f"(largest difference {done.proof.max_difference:.1e}, limit {done.proof.limit:.1e})"
        )
    else:
        lines += [
            "not proved: without reference logits nothing shows that the facts above are right.",
            "To prove it, make reference.npz and import again with --reference reference.npz:",
            REFERENCE_LINES,
        ]
    return lines


def next_step(done: Import) -> str:
    """The command that comes next."""
    return f"next: {command('export', done.folder, '--out', f'{done.folder}-gguf')}"
