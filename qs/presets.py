"""Settings to start from, by name."""

from __future__ import annotations

from qs.config import Config, OptimConfig, RunConfig, StarConfig, ThoughtConfig

TINY = Config(  # the bundled model and text, in minutes on a CPU
    ThoughtConfig(
        thoughts=5,
        ahead=1,
        samples=4,
        beta=100.0,
        keep_negative=True,
        sample_temperature=0.7,
        policy_temperature=0.7,
        embedding_scale=1.0,
        start_text=":",
        end_text=";",
    ),
    OptimConfig(lr=3e-5, mixer_lr=3e-3, thought_lr=3e-3, warmup=10, decay="cosine"),
    RunConfig(data="tiny", weights="tiny", seq=64, batch=4, steps=240, eval_rows=192),
)

PRESETS = {
    "tiny": TINY,
    "demo": TINY.changed(steps=20, eval_rows=16),  # a glance at it, in half a minute
    "rlp": TINY.changed(  # the same model and text by RLP's choices (arXiv:2510.01265)
        samples=16,
        beta=1.0,
        likelihood_weight=0.0,
        reference="average",
        baseline="others",
        length_norm=True,
        mix_weight="one",
    ),
    "published": Config(),  # the released run: 100 steps of 8 rows of 256 tokens
    "sums": Config(  # STaR on the bundled model of sums, in minutes on a CPU
        optim=OptimConfig(lr=1e-3, warmup=10, decay="cosine", weight_decay=0.1, beta2=0.98),
        run=RunConfig(objective="star", weights="sums", seq=256, batch=16, steps=50, keep=1),
        star=StarConfig(
            rounds=10,
            problems=1500,
            shots=0,
            rationale_temperature=0.7,
            rationale_tokens=140,
            rationale_batch=250,
        ),
    ),
    "star": Config(  # the published rounds: 40 steps, 1.2 times more in each, all questions
        optim=OptimConfig(lr=1e-6, warmup=100, weight_decay=0.0),
        run=RunConfig(objective="star", seq=1024, batch=8, steps=40, keep=1),
        star=StarConfig(task="commonsense_qa", problems=0, test_problems=0),
    ),
}

ONE_THOUGHT = {  # everywhere, judged on the next token
    "ahead": 1,
    "samples": 1,
    "beta": 0.0,
    "baseline": "none",
    "anchors": "all",
    "anchor_share": 1.0,
}

# one thought at a time, on text of any length: compiled layers would be compiled for each
ANY_TEXT = ONE_THOUGHT | {"seq": 2, "compile": False}
