"""The generators by name, with the options that each one takes and what is known about each behaviour."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from crosspatch.core.errors import BadInput, UnknownName
from crosspatch.tasks import agreement, choices, containers, gender, known_facts, repeats, signatures, sums
from crosspatch.tasks import indirect_object as ioi_
from crosspatch.tasks.answers import MODES
from crosspatch.tasks.countries import capitals
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, IOI_TEMPLATES
from crosspatch.tasks.own import from_file, is_file_name
from crosspatch.tasks.pair import Task
from crosspatch.tasks.rows import is_id
from crosspatch.tasks.tokens import OpenedModel
from crosspatch.tasks.years import greater_than

Value = str | int | bool | None
PAIRS = 32  # of a generated task, if nobody says how many


@dataclass(frozen=True)
class TaskOption:
    """Say what an option of a generator does and list its values; the first is the default."""

    summary: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class TaskInfo:
    """Describe a generator: its name, the function that builds the task, one line about it, its options.

    `published` tells what has been found about the behaviour, with the source; heads are written layer.head.
    """

    name: str
    build: Callable[..., Task]
    summary: str
    options: Mapping[str, TaskOption]
    published: str = ""


_KNOWN_ONLY = TaskOption("keep only pairs that the model gets right", (False, True))

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            "ioi",
            ioi_.ioi,
            "indirect object identification: two names, one named again; the answer is the other",
            {
                "corrupt": TaskOption("which names the corrupt prompt replaces", ioi_.CORRUPTIONS),
                "order": TaskOption("the answer's name first (ABBA), second (BABA), or half each", ioi_.ORDERS),
                "template": TaskOption(
                    "one wording, so that all prompts have one layout", (None, *range(len(IOI_TEMPLATES)))
                ),
            },
            "GPT-2 small: name movers 9.6 9.9 10.0, negative name movers 10.7 11.10, S-inhibition 7.3 7.9 8.6 8.10, "
            "induction 5.5 6.9 (5.8 5.9), duplicate token 0.1 3.0 (0.10), previous token 2.2 4.11, backup name movers "
            "9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9 (Wang et al. 2023, Interpretability in the Wild).",
        ),
        TaskInfo(
            "capitals",
            capitals,
            "the country of a capital; the corrupt prompt names another city",
            {
                "template": TaskOption("which wording", tuple(range(len(CAPITAL_TEMPLATES)))),
                "known_only": _KNOWN_ONLY,
            },
            "GPT models: MLPs of the middle layers at the subject's last token restore the fact, attention of later "
            "layers at the end (Meng et al. 2022, ROME); attention carries the attribute from the subject to the end "
            "(Geva et al. 2023).",
        ),
        TaskInfo(
            "greater_than",
            greater_than,
            "a span of years must end after it began; the corrupt one begins in a year ending in 01",
            {},
            "GPT-2 small: heads 5.5 6.1 6.9 7.10 8.11 9.1 bring the first year's ending to the end, MLPs 8 to 11 raise "
            "the years above it (Hanna, Liu & Variengien 2023).",
        ),
        TaskInfo(
            "docstring",
            signatures.docstring,
            "a docstring names a function's parameters in order; the third one is asked for",
            {"corrupt": TaskOption("which argument names the corrupt prompt replaces", signatures.CORRUPTIONS)},
            "attn-only-4l (4 layers, 8 heads): 0.5 1.4 2.0 3.0 3.6 carry it (also 0.2 0.4 1.2 in part); 3.0 and 3.6 "
            "write the answer at the end, 1.4 and 2.0 act at B_doc and C_def (Heimersheim & Janiak 2023).",
        ),
        TaskInfo(
            "induction",
            repeats.induction,
            "random words A B … A: what followed A before follows again",
            {
                "corrupt": TaskOption("which word the corrupt prompt replaces", repeats.CORRUPTIONS),
                "length": TaskOption("words in a prompt", repeats.LENGTHS),
            },
            "a head that attends to the previous token feeds a later one that attends to what followed (Elhage et al. "
            "2021; Olsson et al. 2022). GPT-2 small: previous token 2.2 4.11, induction 5.5 6.9 (Wang et al. 2023).",
        ),
        TaskInfo(
            "facts",
            known_facts.facts,
            "well-known facts about places, people and companies; the corrupt prompt names another subject",
            {
                "relation": TaskOption("one kind of fact", known_facts.RELATIONS),
                "known_only": _KNOWN_ONLY,
            },
            "GPT-2 XL: MLPs around layer 17 of 48 at the subject's last token restore the fact under noise (Meng et al."
            " 2022, ROME); with another subject in the place of noise the peak is lower (Zhang & Nanda 2024).",
        ),
        TaskInfo(
            "sva",
            agreement.sva,
            "subject-verb agreement; the corrupt prompt has the subject in the other number",
            {
                "form": TaskOption("what stands between subject and verb", tuple(agreement.FORMS)),
                "attractor": TaskOption("the number of the noun in between, like the subject's", agreement.ATTRACTORS),
            },
            "GPT-2: neurons that carry number are shared across structures, with attention in the middle layers across "
            "a phrase (Finlayson et al. 2021). Pythia-70M: circuits of features for number, phrase and clause "
            "(Marks et al. 2024).",
        ),
        TaskInfo(
            "gender_bias",
            gender.gender_bias,
            "the pronoun of a profession or a name; the corrupt prompt names someone of the other gender",
            {"form": TaskOption("a profession and its stereotype, or a first name", gender.FORMS)},
            "GPT-2: the effect through attention sits in few heads of the middle layers, that through neurons in the "
            "first layers at the profession (Vig et al. 2020).",
        ),
        TaskInfo(
            "colours",
            choices.colours,
            "multiple choice: a colour is said and asked for; the answer is a letter",
            {
                "ways": TaskOption("choices", choices.WAYS),
                "letters": TaskOption("letters in order, or random ones", choices.LETTERS),
                "corrupt": TaskOption("the colour said becomes another, or two choices swap", choices.CORRUPTIONS),
            },
            "Chinchilla 70B: a few late heads move the correct letter to the end, reading its place in the list "
            "(Lieberum et al. 2023). Models of 7B: the letter is raised at the end by heads of the middle layers "
            "(Wiegreffe et al. 2025). Models below about 1B mostly cannot do it.",
        ),
        TaskInfo(
            "arithmetic",
            sums.arithmetic,
            "a sum of two digits behind a few worked ones; the corrupt prompt changes an operand",
            {
                "shots": TaskOption("worked sums before it", sums.SHOTS),
                "corrupt": TaskOption("which operand changes", sums.CORRUPTIONS),
            },
            "GPT-J and others: early MLPs at the operands, attention of the middle layers to the end, late MLPs at the "
            "end write the result (Stolfo et al. 2023); the late MLPs hold a bag of heuristics (Nikankin et al. 2025).",
        ),
        TaskInfo(
            "boxes",
            containers.boxes,
            "entity tracking: what a box contains, said among what other boxes contain",
            {
                "boxes": TaskOption("boxes", containers.BOXES),
                "corrupt": TaskOption("another box is asked for, or two contents swap", containers.CORRUPTIONS),
            },
            "Llama 7B: 72 heads in four groups find the label's earlier place, carry it to the end and fetch the "
            "object from there; fine-tuned models use the same circuit, better (Prakash et al. 2024).",
        ),
    )
}


def find_task(name: str) -> TaskInfo:
    """Return what is known about the task of that name; the path of a CSV or JSON-lines file is a task too.

    Raises UnknownName for a task that does not exist.
    """
    if is_file_name(name):
        options = {"answers": TaskOption("what to do with answers of several tokens", MODES)}
        return TaskInfo(name, partial(_build_file, name), "pairs of prompts of your own, from a file", options)
    if name not in TASKS:
        hint = "Make your own with from_tokens, from_texts or a file (.csv, .jsonl)."
        raise UnknownName.of("task", name, TASKS, hint=hint)
    return TASKS[name]


def get_task(name: str, model: OpenedModel, *, n: Any = None, seed: Any = 0, **options: Value) -> Task:
    """Build the task of that name, or of a file's path, with `n` pairs (32; of a file all rows).

    Numbers and option values may be given as text ("3", "true"). Raises UnknownName for a task or option that does not
    exist, BadInput for a value that an option does not take.
    """
    info = find_task(name)
    chosen = {option: _read(info, option, value) for option, value in options.items()}
    if n is None and not is_file_name(name):
        n = PAIRS
    return info.build(model, None if n is None else _whole("n", n), seed=_whole("seed", seed), **chosen)


def _build_file(path: str, model: OpenedModel, n: int | None, *, seed: int, **options: Any) -> Task:
    """Read a file as generators are called; nothing is drawn, so the seed changes nothing."""
    return from_file(model, path, n=n, **options)


def _whole(what: str, given: Any) -> int:
    if isinstance(given, str) and given.strip().lstrip("-").isdecimal():
        return int(given)
    if not isinstance(given, int) or not is_id(given):
        raise BadInput(f"{what}={given!r} is no whole number.")
    return given


def _read(info: TaskInfo, option: str, value: Value) -> Value:
    if option not in info.options:
        raise UnknownName.of(f"option of task {info.name!r}", option, info.options)
    allowed = {str(each).lower(): each for each in info.options[option].values}
    if str(value).lower() not in allowed:
        raise BadInput(
            f"task {info.name!r}: {option}={value!r} is not one of {', '.join(map(repr, allowed.values()))} "
            f"({info.options[option].summary})."
        )
    return allowed[str(value).lower()]
