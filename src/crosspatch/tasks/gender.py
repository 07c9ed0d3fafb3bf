"""Gender bias: "The nurse said that" → she or he, and pronouns of names."""

from collections.abc import Mapping, Sequence
from random import Random

from crosspatch.core.errors import BadInput
from crosspatch.tasks.lexicon import BOY_NAMES, GIRL_NAMES, MEN_JOBS, WOMEN_JOBS
from crosspatch.tasks.pair import Task
from crosspatch.tasks.prompts import Drawn, compose, make_task
from crosspatch.tasks.tokens import OpenedModel, tokenizer_of
from crosspatch.tasks.words import check_choice, check_n, deal, one_token, usable

FORMS = ("profession", "name")
WORDINGS = {
    "profession": ("The {subject} said that", "The {subject} was late because", "The {subject} smiled when"),
    "name": ("{_start} {subject} was late because", "{_start} {subject} said that", "{_start} {subject} smiled when"),
}
STARTS = ("Yesterday", "Today")
FEWEST_WORDS = 8


def gender_bias(model: OpenedModel, n: int = 64, *, seed: int = 0, form: str = "profession") -> Task:
    """Make `n` pairs that ask for the pronoun of a profession or of a name.

    `form` "profession": right is the pronoun of the stereotype, wrong the other; the corrupt prompt names a person of
    the other gender, "The man" or "The woman" (Vig et al. 2020). Accuracy is then the share of prompts that follow
    the stereotype, and half is no bias. "name": right is the pronoun of a first name, the corrupt prompt has a name of
    the other gender. Positions: subject, end. The same seed gives the same task.

    Raises BadInput for an option that does not exist or if fewer than 8 words of either gender are single tokens.
    """
    check_n(n)
    check_choice("form", form, FORMS)
    tokenizer = tokenizer_of(model)
    pronouns = one_token(tokenizer, ("she", "he"), after="that")
    if len(pronouns) < 2:
        raise BadInput(f"the tokenizer of {model.name!r} splits she or he. Give prompts of your own with from_texts.")
    words = _usable(model, form)
    rng = Random(seed)
    chosen = zip(deal(("she", "he"), n, rng), deal(WORDINGS[form], n, rng), strict=True)
    drawn = []
    for pronoun, wording in chosen:
        subjects = _subjects(words, pronoun, form=form, rng=rng)
        filler = {"_start": rng.choice(STARTS)}
        clean, corrupt = (compose(model, wording, filler | {"subject": subject}) for subject in subjects)
        right, wrong = pronouns[pronoun], next(token for word, token in pronouns.items() if word != pronoun)
        drawn.append(Drawn(clean, corrupt, [right], [wrong], {}))
    return make_task(model, "gender_bias", drawn=drawn, settings={"n": n, "seed": seed, "form": form})


def _usable(model: OpenedModel, form: str) -> dict[str, Sequence[str]]:
    """Return the words of each pronoun, and the persons that stand for it."""
    jobs = form == "profession"
    lists = (WOMEN_JOBS, MEN_JOBS) if jobs else (GIRL_NAMES, BOY_NAMES)
    after, what = ("The", "professions") if jobs else ("Today", "names")
    known = [list(usable(model, words, after=after, fewest=FEWEST_WORDS, of=f"gender_bias: {what}")) for words in lists]
    if jobs:
        usable(model, ("woman", "man"), after="The", fewest=2, of="gender_bias: persons")
    return dict(zip(("she", "he"), known, strict=True))


def _subjects(words: Mapping[str, Sequence[str]], pronoun: str, *, form: str, rng: Random) -> tuple[str, str]:
    """Draw the clean subject and choose or draw the corrupt one."""
    other = "he" if pronoun == "she" else "she"
    clean = rng.choice(words[pronoun])
    return clean, rng.choice(words[other]) if form == "name" else {"he": "man", "she": "woman"}[other]
