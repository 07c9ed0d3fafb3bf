"""Pairs of prompts with answers and named positions: from tokens, from texts, or generated for a known behaviour."""

from .build import from_texts as from_texts
from .build import from_tokens as from_tokens
from .checking import TaskCheck as TaskCheck
from .checking import check as check
from .checking import check_metric as check_metric
from .checking import keep_known as keep_known
from .countries import capitals as capitals
from .indirect_object import ioi as ioi
from .pair import Pair as Pair
from .pair import Task as Task
from .registry import TASKS as TASKS
from .registry import TaskInfo as TaskInfo
from .registry import TaskOption as TaskOption
from .registry import get_task as get_task
from .show import preview as preview
from .tokens import token_strings as token_strings
