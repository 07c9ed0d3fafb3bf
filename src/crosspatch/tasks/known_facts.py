"""Facts: "Toyota is a company from" → Japan; the corrupt prompt names another subject of the same relation."""

from crosspatch.tasks.lexicon_facts import FACTS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.recall import Fact, recall
from crosspatch.tasks.tokens import OpenedModel
from crosspatch.tasks.words import check_choice

RELATIONS = ("all", *FACTS)


def facts(model: OpenedModel, n: int = 32, *, seed: int = 0, relation: str = "all", known_only: bool = False) -> Task:
    """Make `n` pairs of well-known facts about places, people, companies, languages and sports.

    The corrupt prompt names another subject of the same relation with as many tokens; the wrong answer is that
    subject's. `relation` keeps one kind of fact. Positions: subject_first and subject (first and last token of the
    subject), end. With `known_only`, pairs that the model gets wrong are replaced by others (`keep_known`); fewer than
    `n` may then be left. The same seed gives the same task. The set-up is that of causal tracing (Meng et al. 2022)
    with another subject in the place of noise (Zhang & Nanda 2024).

    Raises BadInput for a relation that does not exist, a model without tokenizer or more pairs than there are.
    """
    check_choice("relation", relation, RELATIONS)
    chosen = FACTS if relation == "all" else {relation: FACTS[relation]}
    rows = [
        Fact(wording, subject, answer, kind) for kind, (wording, known) in chosen.items() for subject, answer in known
    ]
    settings = {"seed": seed, "relation": relation}
    return recall(model, "facts", facts=rows, n=n, known_only=known_only, settings=settings)
