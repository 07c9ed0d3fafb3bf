"""Capitals: "Kabul, the capital of" → Afghanistan; the corrupt prompt names another city of as many tokens."""

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import CAPITAL_TEMPLATES, CAPITALS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.recall import Fact, recall
from crosspatch.tasks.tokens import OpenedModel


def capitals(model: OpenedModel, n: int = 32, *, seed: int = 0, template: int = 0, known_only: bool = False) -> Task:
    """Make `n` pairs that ask for the country of a capital; the corrupt prompt swaps in another city.

    Both cities have equally many tokens and both countries one. `template` chooses the wording. Positions:
    subject_first and subject (first and last token of the city), end. With `known_only`, pairs that the model gets
    wrong are replaced by others (`keep_known`); fewer than `n` may then be left. The same seed gives the same task.

    Raises BadInput for a template that does not exist, a model without tokenizer or more pairs than there are.
    """
    if not 0 <= template < len(CAPITAL_TEMPLATES):
        raise BadInput(f"template={template} does not exist: give 0 to {len(CAPITAL_TEMPLATES) - 1}.")
    wording = CAPITAL_TEMPLATES[template].replace("{city}", "{subject}")
    facts = [Fact(wording, city, country) for city, country in CAPITALS]
    settings = {"seed": seed, "template": template}
    return recall(model, "capitals", facts=facts, n=n, known_only=known_only, settings=settings)
