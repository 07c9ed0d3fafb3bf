"""Models whose weights are set by hand, so that the causal truth is known: real Llamas, with nothing learnt in them.

| module | what is planted | what patching must find |
|---|---|---|
| `gates` | AND, OR and ADDER of two inputs, each read by a head | AND by noise, OR by denoise, ADDER by both |
| `induction` | a previous-token head, then a head that looks for the token after an earlier copy | a path by the keys |
| `backup` | a head that speaks up when another's output is missing | noise hides the first head; both together break |
| `negative` | a head that lowers the right answer's logit | logit differences show it, probabilities do not |
| `fraction` | a compiled program: the share of "x" so far | an MLP, read by the values of a head |
| `reverse` | a compiled program: the letters backwards | values alone, or a chain of heads and MLPs |

`build()` (or `build_and()`, …) returns a `Planted`: module, pairs, named positions, and `truth`, the normalised effect
of each site on the logit difference in both directions. `together` says the same of sites patched at once, `paths` of
paths from a sender to a receiver (other heads held, MLPs recomputed); `edges` are those of the graph that matter. Each
model has idle heads too, which read and write what no one looks at: they are no part of any circuit.

How the weights are exact. Each channel of the stream has a name and a meaning. RMSNorm is made linear by an epsilon of
10¹² and a weight of 10⁶. Attention scores differ by hundreds, so a head takes one token's value. The rotary base is so
large that query dimensions from the ninth pair on do not turn; the second pair, at a tenth of a radian a token, tells
how far away a token is.
"""

from planted.wiring import Expected as Expected
from planted.wiring import Planted as Planted
