"""The gallery: `python docs/pages.py gallery` runs it on the real models and writes docs/gallery.md and its pictures."""

# %% [markdown]
# # Gallery
#
# What results draw, each with the lines behind it. In a notebook the last line of a cell is enough; `report("page.html")` puts the same
# pictures on a page that works offline. All of it is Gemma-3-270M on indirect object identification, run as it stands:

# %%
import crosspatch as xp
from crosspatch import circuits, lenses

model = xp.open_model("gemma-3-270m")
task = xp.tasks.ioi(model, n=8, template=0, order="ABBA")

# %% [markdown]
# ## Effects by layer and position
#
# Attention and MLP outputs put from the clean run into the corrupt one. One MLP holds nearly everything at the
# second name; attention moves it to the last word in the upper half.

# %% effects
effects = xp.patch(model, task, sites="attn.out, mlp.out")
effects

# %% [markdown]
# ## Heads
#
# What each head at the last word is needed for: corrupt activations in the clean run. Heads in red work against the answer.

# %% heads
heads = xp.patch(model, task, sites="attn.head@end", direction="noise")
heads

# %% [markdown]
# ## Queries, keys and values
#
# By which of its three inputs does a head get its information? Patched alone, at the positions that matter.

# %% parts
parts = xp.patch(model, task, sites="attn.q@end, attn.k@S2, attn.v@S2")
parts

# %% [markdown]
# ## Estimate against truth
#
# Gradients estimate all heads at once, and 40 of them are patched exactly. Points on the diagonal agree.

# %% estimate
from crosspatch.report.verification import verification

guess = xp.attribute(model, task, sites="attn.head@end", by="atp-qk", verify=20)
verification(guess).svg

# %% [markdown]
# ## A circuit
#
# The 40 edges that integrated gradients put first, of 5,644: senders below, receivers above.

# %% circuit
here, held_out = circuits.split(task)
circuit = circuits.find(model, here, by="eap-ig", size=40)
circuit

# %% [markdown]
# ## How faithful are circuits of each size?
#
# Circuits by one gradient and by five, on pairs that the search did not see. 1 is the whole model.

# %% faithfulness
import numpy as np

from crosspatch.draw import Curve, curves_svg

sizes = np.array([10.0, 30, 100, 300, 1000])
curves = []
for by in ("eap", "eap-ig"):
    found = [circuits.find(model, here, by=by, size=int(size)) for size in sizes]
    whole = [circuits.score(one, model, held_out).faithfulness.value for one in found]
    curves.append(Curve(by, sizes, np.array(whole)))
labels = {"x_label": "edges", "y_label": "share of the gap"}
curves_svg(curves, title="Faithfulness", **labels, linear_y=True)

# %% [markdown]
# ## What a head attends to
#
# Attention of two heads that do much, one for the answer and one against it; mean over prompts.

# %% attention
lenses.attention(model, task, "attn.head[11, 3], attn.head[15, 1]")

# %% [markdown]
# ## Logit lens
#
# The probability of the right name in the last token's stream after each layer, prompt by prompt.

# %% lens
lenses.logit_lens(model, task)

# %% [markdown]
# ## Parts of a logit
#
# Direct attribution: what each part of the model writes into the answer's logit, in parts that add up to it.

# %% direct
from crosspatch.attribution import direct

direct(model, task, by="head")

# %% [markdown]
# ## Cost of finding the strongest sites
#
# Methods that look for the strongest sites, by what they cost for each that is found and verified: see [estimates](estimates.md).
#
# ![Cost of verified recall of several estimators, relative to an oracle's](recall.svg)
#
# ## Speech
#
# `crosspatch study speech` listens with Whisper and draws maps over layers and seconds on one page: see
# [the speech study](speech-study.md).
