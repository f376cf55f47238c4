"""Settings of a thought: what it is, how it is mixed in, what it earns, what the loss weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qs.settings import COLDEST, check_limits, setting


@dataclass(frozen=True)
class ThoughtConfig:
    """What a thought is, how it is mixed in and what it is rewarded for."""

    thoughts: int = setting(
        9,
        "n: sampled tokens in one thought, start and end not counted; with 0, text is predicted "
        "after start and end alone, while decoding and question sets do not think",
        least=0,
        most=4096,
    )
    end: Literal["fixed", "drawn"] = setting(
        "fixed",
        "fixed: a thought has n tokens; drawn: the model ends it, after n tokens at most",
        later=True,
    )
    thought_cost: float = setting(
        0.0, "nats that each token of a thought takes off its reward", least=0, later=True
    )
    ahead: int = setting(4, "m: true tokens ahead that a thought is judged on", least=1, most=4096)
    samples: int = setting(2, "K: thoughts sampled at each position", least=1, most=2**20)
    beta: float = setting(1e6, "weight of the policy loss", least=0)
    base_weight: float = setting(
        0.5, "share of the base NLL in the likelihood loss; the rest is talk", least=0, most=1
    )
    likelihood_weight: float = setting(
        1.0,
        "weight of the likelihood loss; 0: thoughts are trained by REINFORCE alone, which needs a "
        "head that mixes: --mix-weight one or sigmoid, or that of a run",
        least=0,
        later=True,
    )
    reward: Literal["information-gain", "exact", "probability"] = setting(
        "information-gain",
        "what a thought earns: nats by which the m true tokens are likelier; 1 if all of them are "
        "the likeliest ones; or their mean probability",
        later=True,
    )
    reference: Literal["own", "average"] = setting(
        "own",
        "whose prediction without a thought information gain is over: the model's own, or that of "
        "a moving average of its weights (one more copy in memory, two while it judges; "
        "where a position's own thoughts are the baseline it changes logged rewards alone)",
        later=True,
    )
    average_decay: float = setting(
        0.999, "what a step leaves of the moving average", least=0, most=1, later=True
    )
    baseline: Literal["mean", "others", "none"] = setting(
        "mean",
        "REINFORCE baseline: the mean reward of a position's own K thoughts; of its other K - 1 "
        "(leave-one-out, K / (K - 1) times the advantage); or none",
    )
    length_norm: bool = setting(
        False, "divide log p of a thought by its own tokens, a drawn end included", later=True
    )
    keep_negative: bool = setting(False, "also push down thoughts that are below the baseline")
    sample_temperature: float = setting(
        1.0, "temperature thoughts are sampled at; 0 is greedy", least=0, temperature=True
    )
    policy_temperature: float = setting(
        3.0, "temperature of log p in the policy loss", least=COLDEST
    )
    mix_weight: Literal["linear", "sigmoid", "one"] = setting(
        "linear",
        "mixing weight: unbounded and 0 at the start, bounded to (0, 1), or 1: the thought alone",
    )
    mix_space: Literal["output", "probability"] = setting(
        "output", "mix outputs (equals mixing logits) or probabilities (needs sigmoid)"
    )
    embedding_scale: float = setting(
        100.0,
        "start and end vectors are stored divided by this, so that Adam moves them faster",
        least=1e-6,
        most=1e6,
    )
    start_text: str = setting("---", "text whose embedding the start vector begins from")
    end_text: str = setting("---", "text whose embedding the end vector begins from")
    anchors: Literal["all", "random", "uncertain"] = setting(
        "all", "positions that think: all, a random share, or where the base model is least sure"
    )
    anchor_share: float = setting(1.0, "share of a row's positions that think", above=0, most=1)

    def anchor_count(self, seq: int) -> int:
        """A: positions that think in a row of `seq` tokens."""
        return max(1, round(seq * self.anchor_share))

    @property
    def lengths(self) -> str:
        """n, m and K in words."""
        most = " at most" if self.end == "drawn" else ""
        return f"n {self.thoughts}{most}, m {self.ahead}, K {self.samples}"

    def __post_init__(self) -> None:
        check_limits(self)
        if self.anchors == "all" and self.anchor_share != 1:
            raise ValueError(
                f"--anchor-share {self.anchor_share} needs --anchors random or uncertain"
            )
        if self.beta > 0 and self.baseline != "none" and self.samples < 2:
            raise ValueError(
                "--samples 1 leaves the mean baseline nothing to compare with (every advantage "
                "is 0): use --samples 2 or more, --baseline none, or --beta 0"
            )
        if self.reference == "average" and self.reward != "information-gain":
            raise ValueError(
                f"--reference average is of --reward information-gain, got {self.reward}, which "
                "is compared with no prediction: leave one out"
            )
        if self.beta > 0 and self.thoughts == 0:
            raise ValueError("--thoughts 0 leaves REINFORCE no token to reward: pass --beta 0")
        if self.beta > 0 and self.sample_temperature == 0:
            raise ValueError(
                "--sample-temperature 0 (greedy) makes all K thoughts equal and every advantage "
                "0: sample above 0, or pass --beta 0"
            )
        if self.thought_cost and self.end == "fixed":
            raise ValueError(
                f"--thought-cost {self.thought_cost} changes nothing where all thoughts have n "
                "tokens: add --end drawn"
            )
        if self.mix_space == "probability" and self.mix_weight != "sigmoid":
            raise ValueError("--mix-space probability needs --mix-weight sigmoid")
