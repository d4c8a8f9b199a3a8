"""The records that users fine-tune on: read with each fault named by its line, and divided."""

from llmkit.finetuning.conversations import Conversation, read_conversations
from llmkit.finetuning.labelled import LabelledText, read_labelled
from llmkit.finetuning.preferences import Preference, read_preferences
from llmkit.finetuning.splits import Fractions, balance, split, split_stratified

__all__ = [
    "Conversation",
    "Fractions",
    "LabelledText",
    "Preference",
    "balance",
    "read_conversations",
    "read_labelled",
    "read_preferences",
    "split",
    "split_stratified",
]
