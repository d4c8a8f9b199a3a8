"""Programs whose checkpoints are known: by which names, and what their files leave unsaid.

A file per group of programs. `PROJECTS` is in the order in which they are tried.
"""

from llmkit.importing.projects.book import BOOK
from llmkit.importing.projects.huggingface import HUGGING_FACE
from llmkit.importing.projects.karpathy import KARPATHY
from llmkit.importing.projects.modern import MODERN
from llmkit.importing.projects.project import Project, recognised
from llmkit.importing.projects.students import STUDENTS
from llmkit.importing.projects.torch_layers import TORCH_LAYERS

PROJECTS: tuple[Project, ...] = (*MODERN, *HUGGING_FACE, *KARPATHY, *STUDENTS, *BOOK, *TORCH_LAYERS)

__all__ = ["PROJECTS", "Project", "recognised"]
