"""Runs of circuits against the naive twin, on every family of the zoo: any edges, unequal prompts, places, variants."""

import pytest

from builders_circuits import machine_of, random_masks
from crosspatch.circuits.variants import Variants
from naive.circuits import body_of, masked_logits, precision
from zoo import ZOO, make_task, opened, uneven


@pytest.mark.parametrize("name", ZOO)
def test_a_run_with_some_edges_is_the_naive_one(name: str) -> None:
    model, body = opened(name, precision(name)), body_of(name)
    task = make_task(*uneven())
    with machine_of(model, task) as machine:
        masks = random_masks(machine.graph, 0.3, 0.7, 0.95)
        found = machine.scores(Variants.of(machine, machine.clean, masks).run())[0]
    for circuit, mask in enumerate(masks):
        for number, pair in enumerate(task.pairs):
            logits = masked_logits(body, pair.clean, pair.corrupt, mask)[-1]
            expected = float(logits[5] - logits[7])
            assert float(found[circuit, number]) == pytest.approx(expected, abs=2e-5), (name, circuit, number)
