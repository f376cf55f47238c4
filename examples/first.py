# %% [markdown]
# # A first look at thoughts
#
# A small model comes with this package. It reads little puzzles such as `71600`: the last digit of
# 7 + 1 + 6 + 0 + 0. It can work them out on paper, one digit after the other, but it has not
# learned to think before it speaks. This page is what `python examples/notebook.py` made of
# `examples/first.py`.

# %%
import torch

import qs

model = qs.load("tiny", thoughts=5, start_text=":", end_text=";", fixed_weight=1.0, seed=2)

# %% [markdown]
# ## Thoughts
#
# After the text it samples four hidden thoughts of five tokens. `78444` is the working: the sum so
# far, by its last digit.

# %%
model.think("71600\n")

# %% [markdown]
# ## What they are worth
#
# Without a thought the model does not know the next token. After the working it does. Weight 1
# takes the prediction after the thought as it is; a trained model decides by its mixing head.

# %%
model.predict("71600\n")

# %% [markdown]
# With a thought before each token it writes the answer.

# %%
model.generate("71600\n", max_tokens=1).tokens

# %% [markdown]
# ## What is learned
#
# One step thinks at every position of a text, and rewards each thought by how much likelier it
# made the true next token, in nats. REINFORCE makes thoughts likelier that earned more than the
# others of their position; the loss is one visible sum.

# %%
quiet = model.quiet
tokens = torch.tensor([model.tokenizer.encode("71600\n4", bos=True)])
step = quiet(tokens, generator=torch.Generator().manual_seed(11), fixed_weight=1.0)
for k, thought in enumerate(step.thoughts[0, -2].tolist()):  # before the answer
    print(repr(model.tokenizer.decode(thought)), f"earned {step.reward[0, -2, k]:+.2f} nats")
with quiet.with_settings(beta=1.0):
    print(f"loss {quiet.loss(quiet.means(step)):.2f}")

# %% [markdown]
# `python train.py` does this for 240 steps, until a thought that holds the working comes before
# nearly every answer.
