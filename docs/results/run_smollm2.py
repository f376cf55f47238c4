"""The experiment of smollm2.md, arm by arm; what run-smollm2.sh starts.

    python docs/results/run_smollm2.py MODEL DATA QUESTIONS OUT [--seconds 530] [--only 'A;B']

Results are written after each arm, into OUT/smollm2.json; arms that are there already are not run
again, and those that no time is left for are named. `--list` shows the arms in their order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm2_bridge import Bridge, answer_nll, bridge_room, make_bridge, read_problems
from smollm2_study import CPU, GPU, REHEARSAL, SMALL, Phase, Study, last
from smollm2_tables import tables
from smollm2_thoughts import reads_again

from qs.data.question_sets import read_questions
from qs.training.work import operations

SIZES = {"gpu": GPU, "cpu": CPU, "small": SMALL, "rehearsal": REHEARSAL}
CURVE = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32)  # times an arm's steps: longer ones are measured there
PLAIN, PAUSE = {"objective": "plain"}, {"objective": "pause"}
ALONE = {  # head and vectors by likelihood; the model's gradient clips nothing
    "lr": 0.0,
    "weight_decay": 0.0,
    "thought_lr": 1e-4,
    "clip": 1e6,
    "beta": 0.0,
    "samples": 1,
}


@dataclass(frozen=True)
class Arm:
    """What is trained, and what is measured afterwards.

    Attributes:
        phases: of training; none: the model as it is.
        seed: of thoughts.
        start, end: texts that the vectors begin from.
        again: the end slot reads the anchor's own token.
        bridge: on documents of problems, from the model that has read written-out workings:
            "bridge" (GSM8K's) or "easy" ones; "": on ordinary text.
        asks: whether the question sets are asked.
        samples: K of the room, if not that of the sizes.
        operations: as many steps as take the floating-point operations of thinking ones.
    """

    phases: tuple[Phase, ...] = ()
    seed: int = 0
    start: str = "---"
    end: str = "---"
    again: bool = False
    bridge: str = ""
    asks: bool = False
    samples: int | None = None
    operations: bool = False

    @property
    def kind(self) -> tuple[str, bool]:
        return self.bridge, self.thinks

    @property
    def thinks(self) -> bool:
        return not (self.phases and self.phases[-1].settings.get("objective") == "plain")


def phased(*phases: tuple[float, dict[str, Any]], true: bool = False) -> tuple[Phase, ...]:
    """Phases by their shares; `true`: the first has the true continuation for thoughts."""
    return tuple(
        Phase(settings, share, true and not i) for i, (share, settings) in enumerate(phases)
    )


THINK = (Phase(),)
# true thoughts open a head of 1e-3 within five steps
SLOWER = {"beta": 0.0, "samples": 1, "mixer_lr": 1e-4}
TRUE = phased((0.5, SLOWER), (0.5, {}), true=True)
RLP = {  # the thought alone predicts, and nothing is learned by likelihood (`--preset rlp`)
    "likelihood_weight": 0.0,
    "baseline": "others",
    "mix_weight": "one",
}
# a thought never counts against what it says, and costs at most -log(1 - w)
IN_PROBABILITY = {"mix_weight": "sigmoid", "mix_space": "probability"}
ONLY_TRUE = (Phase(SLOWER, true=True),)
ARMS = {  # in the order of their value
    "as it is": Arm(asks=True),
    "plain": Arm((Phase(PLAIN),), asks=True),
    "quiet, seed 0": Arm(THINK, asks=True),
    "pause": Arm((Phase(PAUSE),)),
    "bridge, begun": Arm(bridge="bridge", asks=True),
    "bridge, plain": Arm((Phase(PLAIN),), bridge="bridge", asks=True),
    "bridge, quiet, seed 0": Arm(THINK, bridge="bridge", asks=True),
    "bridge, pause": Arm((Phase(PAUSE),), bridge="bridge", asks=True),
    "true first, seed 0": Arm(TRUE),
    "end reads again, seed 0": Arm(THINK, again=True),
    "head and vectors first, seed 0": Arm(phased((0.3, ALONE), (0.7, {}))),
    "beta 0": Arm((Phase({"beta": 0.0}),)),
    "bridge, rlp": Arm((Phase(RLP),), bridge="bridge", asks=True),
    "bridge, quiet, seed 1": Arm(THINK, seed=1, bridge="bridge", asks=True),
    "bridge, in probability": Arm((Phase(IN_PROBABILITY),), bridge="bridge", asks=True),
    "bridge, beta 10": Arm((Phase({"beta": 10.0}),), bridge="bridge", asks=True),
    "bridge, beta 0": Arm((Phase({"beta": 0.0}),), bridge="bridge", asks=True),
    "quiet, seed 1": Arm(THINK, seed=1),
    "true first, seed 1": Arm(TRUE, seed=1),
    "true first, end reads again": Arm(TRUE, again=True),
    "beta 10": Arm((Phase({"beta": 10.0}),)),
    "n 0 first": Arm(phased((0.3, {"thoughts": 0, "beta": 0.0}), (0.7, {}))),
    "bridge, true first": Arm(TRUE, bridge="bridge", asks=True),
    "16 thoughts": Arm(samples=16),
    "16 thoughts, end reads again": Arm(samples=16, again=True),
    "plain, same operations": Arm((Phase(PLAIN),), operations=True),
    "bridge, plain, same operations": Arm((Phase(PLAIN),), bridge="bridge", operations=True),
}
for name, arm in list(ARMS.items()):  # the same on easy problems
    if arm.bridge:
        ARMS[name.replace("bridge", "easy")] = dataclasses.replace(arm, bridge="easy", asks=False)
for seed in (0, 1):  # what REINFORCE begins from
    ARMS[f"head and vectors alone, seed {seed}"] = Arm((Phase(ALONE),), seed=seed)
    ARMS[f"true alone, seed {seed}"] = Arm(ONLY_TRUE, seed=seed)
ARMS["true alone, end reads again"] = Arm(ONLY_TRUE, again=True)
for start, end in (("---", "---"), (" ", " "), (" (", ")"), ("\n", "\n")):
    for again in (True,) if start == "---" else (False, True):
        name = f"untrained, from {start!r} to {'the word before' if again else repr(end)}"
        ARMS[name] = Arm(start=start, end=end, again=again)


class Experiment:
    """The study, what is known so far, and the time there is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.began, self.options, self.out = time.perf_counter(), options, options.out
        self.sizes = SIZES[options.sizes]
        self.study = Study(options.model, options.data, self.sizes, dtype=options.dtype)
        self.path = self.out / "smollm2.json"
        self.took: dict[tuple[str, bool], float] = {}  # seconds of the quickest arm of a kind
        self.found: dict[str, Any] = {}
        if self.path.exists():
            self.found = json.loads(self.path.read_text())
        if self.found.setdefault("sizes", dataclasses.asdict(self.sizes)) != json.loads(
            json.dumps(dataclasses.asdict(self.sizes))
        ):
            raise SystemExit(f"{self.path} is of other sizes: give another folder")
        self.scratch = tempfile.TemporaryDirectory()  # of the bridge's datasets
        self.bridges: dict[str, tuple[Bridge, dict[str, Any]]] = {}  # and what was taught

    @property
    def left(self) -> float:
        return self.options.seconds - (time.perf_counter() - self.began)

    def note(self, name: str, what: dict) -> None:
        """Write down one arm."""
        self.found[name] = what
        self.path.write_text(json.dumps(self.found, indent=1))
        seconds = time.perf_counter() - self.began
        told = {k: v for k, v in what.items() if k not in ("rows", "said", "deciles", "log")}
        print(f"-- {seconds:.0f} s, {name}: {json.dumps(told)[:3000]}", flush=True)

    def go(self, arms: list[str]) -> None:
        """Run what is not done yet while there is time."""
        for name in arms:
            if name in self.found:
                continue
            if self.left < self.expected(name):
                print(f"-- skipped, {self.left:.0f} s left: {name}", flush=True)
                continue
            began = time.perf_counter()
            try:
                found = self.run(ARMS[name])
            except Exception:  # the others go on
                traceback.print_exc()
                print(f"-- failed: {name}", flush=True)
                continue
            seconds, kind = time.perf_counter() - began, ARMS[name].kind
            self.took[kind] = min(seconds, self.took.get(kind, math.inf))
            self.note(name, {"seconds": seconds} | found)

    def expected(self, name: str) -> float:
        """Seconds that an arm may take: as one of its kind, and those of more plain steps."""
        arm = ARMS[name]
        seconds = 1.2 * self.took.get(arm.kind, max(self.took.values(), default=0.0))
        if arm.operations:
            plain = self.found.get(name.removesuffix(", same operations"))
            each = plain["training"] / plain["steps"] if plain else math.inf
            seconds += each * self.steps(arm)
        return seconds

    def run(self, arm: Arm) -> dict[str, Any]:
        """Train and measure one arm."""
        study, sizes = self.study, self.sizes
        study.reset()
        bridge = self.on_the_bridge(arm.bridge) if arm.bridge else None
        data = bridge.mixed if bridge else study.data
        extra = self.bridge_settings(arm.bridge) if arm.bridge else {}
        if arm.start != "---" or arm.end != "---":
            study.begin_vectors(arm.start, arm.end)
        phases = [dataclasses.replace(p, settings=extra | p.settings) for p in arm.phases]
        with reads_again(study.quiet, arm.again):
            steps, found = self.steps(arm), {}
            began = time.perf_counter()
            if phases:
                after = bridge.asking if bridge else ()
                curve: dict[int, Any] = {}

                def watch(records: list[dict]) -> None:
                    done = len(records)
                    if arm.operations and done in [sizes.steps * times for times in CURVE]:
                        score, _ = study.measured(arm.thinks, data)
                        curve[done] = {"nll": score["nll_base"]}
                        if bridge:
                            curve[done] |= self.answered(bridge, False)
                        print(f"-- {done} of {steps} steps: {json.dumps(curve[done])}", flush=True)

                records = study.train(phases, steps, arm.seed, data, after, watch)
                found |= {"steps": steps, "training": time.perf_counter() - began}
                found |= {"last": last(records)} | ({"curve": curve} if curve else {})
                keep = ("loss", "nll_base", "nll_talk", "reward", "weight_mean", "thought_top")
                found["log"] = [{k: r[k] for k in keep if k in r} for r in records]
            measured, rows = study.measured(arm.thinks, data)
            found |= measured | {"rows": rows}
            K = arm.samples or sizes.room_samples
            if bridge:
                found |= self.answered(bridge, arm.thinks, K)
            elif arm.thinks:
                found["room"] = study.room(K)[0]
            if arm.asks:
                sets = ("gsm8k",) if arm.bridge else ("gsm8k", "commonsense_qa")
                for name in sets:
                    questions = read_questions(name, "heldout", self.options.questions, sizes.asked)
                    found[name] = study.asked(questions, arm.thinks)
        return found

    def answered(self, bridge: Bridge, thinks: bool, K: int = 1) -> dict[str, Any]:
        """Of the held-out problems, and of the new ones if there are any."""
        each = {}
        for name, problems in {"": bridge.heldout, "new problems": bridge.new}.items():
            if not problems:
                continue
            found = {"room": bridge_room(self.study, problems, K)} if thinks else {}
            found["answers"] = answer_nll(self.study, problems)
            found["held-out problems"] = self.study.asked([p.question for p in problems], thinks)
            each[name] = found
        return each.pop("") | each

    def steps(self, arm: Arm) -> int:
        """Of the whole arm."""
        if not arm.operations:
            return self.sizes.steps
        extra = self.bridge_settings(arm.bridge) if arm.bridge else {}
        config, shape = self.study.config.changed(**extra), self.study.quiet.model.config
        thinking, plain = (
            sum(operations(config.changed(objective=each), shape).values())
            for each in ("quiet", "plain")
        )
        return round(self.sizes.steps * thinking / plain)

    def bridge_settings(self, kind: str) -> dict[str, Any]:
        easy = kind == "easy"
        return {
            "thoughts": self.sizes.easy_thoughts if easy else self.sizes.bridge_thoughts,
            "ahead": 3,
            "samples": 8,
            "anchors": "random",  # but first where answers begin
            "anchor_share": 1 / 16,
            "keep_negative": True,
            "policy_temperature": 1.0,
        }

    def on_the_bridge(self, kind: str) -> Bridge:
        """Begin from the model that has read written workings."""
        study, options = self.study, self.options
        study.reset()
        if kind not in self.bridges:
            folder = Path(tempfile.mkdtemp(dir=self.scratch.name))
            problems, long = read_problems(kind, options.questions, study)
            bridge = make_bridge(kind, problems, long, study, options.model, folder)
            phase = Phase(PLAIN | {"lr": 3e-5})
            steps = self.sizes.easy_steps if kind == "easy" else self.sizes.bridge_steps
            records = study.train([phase], steps, 0, bridge.written)
            study.begin_vectors(" ", " ")
            self.bridges[kind] = bridge, study.values()
            print(f"-- taught by written workings: {last(records)}", flush=True)
        bridge, taught = self.bridges[kind]
        study.reset(taught)
        study.quiet.config = study.config.changed(**self.bridge_settings(kind)).thought
        return bridge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "data", "questions", "out"):
        parser.add_argument(name, type=Path, nargs="?")
    parser.add_argument(
        "--seconds", type=float, default=530, help="no arm begins that would end later"
    )
    parser.add_argument("--only", default="", help="arms, separated by semicolons")
    parser.add_argument(
        "--text", choices=("text", "bridge", "easy"), help="only arms on this kind of text"
    )
    parser.add_argument("--sizes", choices=SIZES, default="gpu")
    parser.add_argument("--rehearse", action="store_const", dest="sizes", const="rehearsal")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--list", action="store_true", help="show the arms in their order")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ARMS))
        return
    arms = [name.strip() for name in options.only.split(";") if name.strip()] or [
        name for name, arm in ARMS.items() if options.text in (None, arm.bridge or "text")
    ]
    if unknown := set(arms) - ARMS.keys():
        parser.error(f"no arm is named {', '.join(sorted(unknown))}: see --list")
    options.out.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(options)
    print(f"{experiment.study.placement}", flush=True)
    experiment.go(arms)
    print(tables(experiment.found))


if __name__ == "__main__":
    main()
