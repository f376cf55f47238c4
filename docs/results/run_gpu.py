"""What run-gpu.sh runs: jobs in order of weight, each skipped when too little time is left.

Results are written after each job. `--rehearse` runs the same on a CPU with tiny shapes; the
backward pass of FlexAttention cannot be rehearsed there. `--only=JOB,JOB` names jobs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qs.config import Config, RunConfig, ThoughtConfig
from qs.model import products
from qs.model.config import ModelConfig
from qs.quietstar.algorithm import QuietStar
from qs.quietstar.load import Placement, allocate
from qs.quietstar.masks import every_position

BEGAN = time.perf_counter()
REHEARSE = "--rehearse" in sys.argv
SECONDS, OUT = float(sys.argv[1]), Path(sys.argv[2])
DEVICE = torch.device("cpu" if REHEARSE else "cuda")
ONLY = next((a.partition("=")[2].split(",") for a in sys.argv if a.startswith("--only=")), None)
FOUND: dict[str, Any] = {}

CHECK = ModelConfig(
    vocab_size=512, dim=256, layers=2, heads=8, kv_heads=4, head_dim=32, hidden_dim=512, window=40
)
T, N, M, K = (24, 4, 2, 2) if REHEARSE else (96, 8, 4, 2)
THOUGHT = ThoughtConfig(thoughts=N, ahead=M, samples=K)


def job(name: str, seconds: float, work: Callable[..., dict], *arguments: Any) -> None:
    """Do one thing, if there is time, and write down what came of it."""
    if ONLY and name not in ONLY:
        return
    left = SECONDS - (time.perf_counter() - BEGAN)
    began = time.perf_counter()
    if left < seconds and not REHEARSE:
        FOUND[name] = {"skipped": f"{left:.0f} s left, {seconds:.0f} wanted"}
    else:
        try:
            FOUND[name] = work(*arguments)
        except Exception as error:
            FOUND[name] = {
                "failed": f"{type(error).__name__}: {str(error)[:1500]}",
                "trace": traceback.format_exc()[-3000:],
            }
    torch.compiler.reset()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    FOUND[name]["wall_s"] = round(time.perf_counter() - began, 1)
    (OUT / "gpu.json").write_text(json.dumps(FOUND, indent=1))
    shown = {key: value for key, value in FOUND[name].items() if key != "trace"}
    print(f"-- {name}: {json.dumps(shown)[:2500]}", flush=True)


def timed(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds, the first time left out."""
    times = []
    for _ in range(repeats + 1):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def ceilings() -> dict:
    """Rates of large products and copies."""
    size = 256 if REHEARSE else 8192
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found |= {"free_gib": free / 2**30, "total_gib": total / 2**30}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        n = size if dtype == torch.bfloat16 else size // 2
        a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * n**3 / timed(lambda a=a, b=b: a @ b) / 1e12
    torch.set_float32_matmul_precision("highest")
    x = torch.empty(2**18 if REHEARSE else 2**29, device=DEVICE)
    y = torch.empty_like(x)
    found["copy_gb_s"] = 2 * x.nbytes / timed(lambda: y.copy_(x)) / 1e9
    if DEVICE.type == "cuda":
        host = torch.empty(2**27, pin_memory=True)
        there = torch.empty_like(host, device=DEVICE)
        found["to_device_gb_s"] = host.nbytes / timed(lambda: there.copy_(host)) / 1e9
        found["to_host_gb_s"] = host.nbytes / timed(lambda: host.copy_(there)) / 1e9
    return found


def module(placement: Placement, recompute: bool = False) -> QuietStar:
    """The same numbers on every device and in every dtype."""
    settings = Config(THOUGHT, run=RunConfig(seq=T, recompute=recompute))
    quiet = allocate(CHECK, settings, placement)
    if placement.dtype == torch.float64:
        quiet.double()
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in quiet.named_parameters():
            x = torch.randn(p.shape, generator=numbers)
            p.copy_(1 + 0.1 * x if "norm" in name else 0.06 * x)
    return quiet


def judged(quiet: QuietStar, device: torch.device) -> tuple[dict[str, torch.Tensor], Any]:
    """Values of a step whose thoughts are given, and the gradients of their sum; thoughts drawn."""
    numbers = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, CHECK.vocab_size, (2, T), generator=numbers)
    thoughts = torch.randint(3, CHECK.vocab_size, (2, T, K, N), generator=numbers)
    documents = torch.zeros_like(tokens)
    documents[:, T // 3 :], documents[1, -3:] = 1, -1  # two documents, and padding
    text = tokens.to(device), documents.to(device)
    anchors = every_position(tokens).to(device)
    backward = quiet.attention != "flex" or device.type == "cuda"
    with torch.set_grad_enabled(backward):
        step = quiet(*text, anchors=anchors, thoughts=thoughts.to(device))
    values = {name: getattr(step, name) for name in ("nll_base", "nll_mix", "log_p", "reward")}
    gradients = None
    if backward:
        (step.nll_base.sum() + step.nll_mix.sum() + step.log_p.sum()).backward()
        named = quiet.named_parameters()
        gradients = {n: p.grad.double().cpu() for n, p in named if p.grad is not None}
    drawn = quiet.think(*text, generator=torch.Generator().manual_seed(3))[1].cpu()
    return {n: v.detach().double().cpu() for n, v in values.items()}, (gradients, drawn)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative, of whole tensors."""
    assert x.isfinite().all()
    return float((x - y).norm() / y.norm())


def correct(attention: str, dtype: torch.dtype, compiled: bool, recompute: bool = False) -> dict:
    """A fast path against the dense mask in float64 on the CPU."""
    if "reference" not in globals():
        cpu = torch.device("cpu")
        exact = Placement(cpu, torch.float64, False, "dense")
        globals()["reference"] = judged(module(exact), cpu)
    values, (gradients, drawn) = globals()["reference"]
    placement = Placement(DEVICE, dtype, compiled, attention, dtype == torch.bfloat16)
    found, (slopes, thoughts) = judged(module(placement, recompute), DEVICE)
    errors = {name: distance(found[name], value) for name, value in values.items()}
    if slopes is not None:
        errors["gradient"] = distance(
            *(torch.cat([g[n].flatten() for n in gradients]) for g in (slopes, gradients))
        )
        errors["worst_gradient"] = max(distance(slopes[n], gradients[n]) for n in gradients)
    errors["equal_thought_tokens"] = float((thoughts == drawn).double().mean())
    return errors


def logits() -> dict:
    """What each precision of the head costs, and what it leaves of the reward of a thought."""
    D, V, rows = (64, 96, 32) if REHEARSE else (4096, 32000, 2048)
    numbers = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, generator=numbers)

    base, one, other = (normal(rows, D).bfloat16().float() for _ in range(3))
    head = (normal(V, D) * 0.05).bfloat16().float()
    target = torch.randint(V, (rows,), device=DEVICE, generator=numbers)

    def advantage(product: Callable, weight: float, wide: torch.dtype) -> torch.Tensor:
        def nll(x: torch.Tensor) -> torch.Tensor:
            scores = product(x.to(wide), head.to(wide)).log_softmax(1)
            return -scores.gather(1, target[:, None]).squeeze(1)

        mixed = [nll((1 - weight) * base + weight * (base + 0.3 * x)) for x in (one, other)]
        return (mixed[1] - mixed[0]) / 2

    def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w.T

    def narrow(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if DEVICE.type == "cpu":
            return (x.bfloat16() @ w.bfloat16().T).float()
        return torch.mm(x.bfloat16(), w.bfloat16().T, out_dtype=torch.float32)

    found: dict[str, Any] = {"rows": rows}
    exact = {w: advantage(plain, w, torch.float64) for w in (1e-3, 1e-2, 1e-1)}
    for name, precision, product in (
        ("float32", "highest", plain),
        ("tf32", "high", plain),
        ("bf16_to_float32", "highest", narrow),
        ("bf16_halves", "high", products.product),
    ):
        torch.set_float32_matmul_precision(precision)
        correlation = {}
        for weight, a in exact.items():
            pair = torch.stack([advantage(product, weight, torch.float32).double(), a])
            correlation[str(weight)] = float(torch.corrcoef(pair)[0, 1])
        seconds = timed(lambda product=product: product(base, head))
        found[name] = {
            "tflops": 2 * rows * D * V / seconds / 1e12,
            "correlation_with_float64_by_mixing_weight": correlation,
        }
    torch.set_float32_matmul_precision("highest")
    return found


def command(seconds: float, *arguments: str) -> dict:
    """Another process, ended when its time is over; the end of what it printed."""
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if REHEARSE else {})
    done = subprocess.run(
        ["timeout", str(seconds), sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines = [line.split("\r")[-1] for line in done.stdout.splitlines()]
    return {"status": done.returncode, "printed": "\n".join(lines)[-2500:]}


def together(seconds: float, commands: dict[str, str]) -> dict:
    """Lines of a shell, all at once, each with a folder `$RUNS` of its own: whether they work."""
    flags = "--device cpu" if REHEARSE else ""
    common = f"--eval-rows 8 --grad-norms-every 0 {flags}"
    told = {"COMMON": common, "DEVICE": flags, "PYTHON": sys.executable, "HERE": str(Path.cwd())}
    found = {}

    def start(name: str, line: str) -> subprocess.Popen:
        runs = OUT / "together" / name
        runs.mkdir(parents=True, exist_ok=True)
        log = (runs / "log.txt").open("w")
        shell = ["timeout", str(seconds), "bash", "-c", f"set -e; train() {{ {TRAIN} }}; {line}"]
        environment = os.environ | told | {"RUNS": str(runs.resolve())}
        return subprocess.Popen(shell, stdout=log, stderr=subprocess.STDOUT, env=environment)

    running = {name: start(name, line) for name, line in commands.items()}
    for name, process in running.items():
        status = process.wait()
        text = (OUT / "together" / name / "log.txt").read_text()
        found[name] = {"status": status, "printed": text[-300 if status == 0 else -1500 :]}
    failed = [name for name, each in found.items() if each["status"]]
    return {"not well": failed} | found


TRAIN = '$PYTHON train.py $COMMON --out "$RUNS" "$@" >> "$RUNS/train.txt" 2>&1 ||'
TRAIN += '{ tail -c 1200 "$RUNS/train.txt"; return 1; };'
EAGER = {
    "rlp": "--preset rlp --steps 3",
    "own end": "--steps 3 --end drawn --thought-cost 0.01",
    "curriculum": "--steps 4 --curriculum 3-1,2-1,0",
    "pause": "--steps 3 --objective pause",
    "8 bit": "--steps 3 --moments 8bit",
    "float32": "--steps 3 --dtype float32 --anchors uncertain --anchor-share 0.3",
    "offloaded": "--steps 3 --offload --recompute --micro-batch 2",
}
LINES = {name: f"train --no-compile {flags}" for name, flags in EAGER.items()} | {
    "resumed": """train --no-compile --steps 4 --save-every 2 --keep 9; cd "$RUNS"; cp -r 2* half
rm -r half/step_000004 half/results.json; $PYTHON "$HERE/train.py" --resume half
cmp 2*/step_000004/model.safetensors half/step_000004/model.safetensors; echo bit for bit""",
    "evaluated": """train --no-compile --steps 2
$PYTHON evaluate.py score "$RUNS"/2* --rows 8 $DEVICE
$PYTHON evaluate.py generate "$RUNS"/2* "71600" --show-thoughts --max-tokens 12 $DEVICE""",
    "compiled": "train --steps 3",
    "compiled, own end": "train --steps 3 --end drawn",
    "compiled, rlp": "train --steps 3 --preset rlp",
}


def bench(name: str, seconds: float, *flags: str) -> dict:
    """`python -m qs.bench`, with its figures."""
    path = OUT / f"{name}.json"
    if REHEARSE:
        flags = ("step", "--size", "tiny", "--seq", "16", "--thoughts", "2", "--device", "cpu")
    limit = max(seconds, SECONDS - (time.perf_counter() - BEGAN) - 5)
    result = command(limit, "-m", "qs.bench", *flags, "--json", str(path))
    return result | {"figures": json.loads(path.read_text())} if path.is_file() else result


def profile() -> dict:
    """Where the device's time goes in a step of four layers of 7B."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from qs.bench.work import Work, build
    from qs.quietstar.sampler import step_generator
    from qs.training.optimizer import make_optimizer
    from qs.training.step import train_step

    size = "tiny" if REHEARSE else "7b-4layers"
    flags = {"compile": None, "device": "cpu" if REHEARSE else "auto", "offload": False}
    quiet, _, config = build(Work(size=size, seq=32 if REHEARSE else 256, thoughts=4, **flags))
    optimizer = make_optimizer(quiet, config.optim)
    numbers = step_generator(0, 0)
    tokens = torch.randint(3, quiet.model.config.vocab_size, (1, config.run.seq), generator=numbers)
    tokens = tokens.to(DEVICE)

    def step(number: int) -> None:
        train_step(quiet, optimizer, tokens, torch.zeros_like(tokens), config, number, number == 1)

    for number in range(2):
        step(number)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not REHEARSE)
    with profiled(activities=kinds) as seen:
        step(2)
    key = "self_cpu_time_total" if REHEARSE else "self_device_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, key))[:40]
    (OUT / "profile.txt").write_text(seen.key_averages().table(sort_by=key, row_limit=60))
    return {"ms": [(row.key[:90], row.count, round(getattr(row, key) / 1e3, 2)) for row in rows]}


def main() -> int:
    wide, narrow = torch.float32, torch.bfloat16
    compiled = not REHEARSE
    full = ("step", "--batch", "8", "--seq", "256", "--thoughts", "16", "--repeats", "2")
    four = ("step", "--size", "7b-4layers", "--seq", "256", "--thoughts", "16", "--repeats", "3")
    short = ("--steps", "3", "--eval-rows", "8", "--out", str(OUT / "runs"))
    short += ("--device", "cpu") if REHEARSE else ()
    job("ceilings", 10, ceilings)
    job("logits", 10, logits)
    job("structured bf16 eager", 10, correct, "structured", narrow, False)
    job("structured float32 eager", 10, correct, "structured", wide, False)
    job("flex bf16 compiled", 60, correct, "flex", narrow, compiled)
    job("7b", 100, bench, "7b", 100, *full, "--size", "7b")
    job("7b-4layers", 45, bench, "7b-4layers", 45, *four)
    job("train.py compiled", 90, command, 120, "train.py", *short)
    job("profile", 40, profile)
    job("flex bf16 recomputed", 40, correct, "flex", narrow, compiled, True)
    job("train.py eager", 40, command, 60, "train.py", *short, "--no-compile")
    job("flex float32 compiled", 60, correct, "flex", wide, compiled)
    job("structured bf16 compiled", 60, correct, "structured", narrow, compiled)
    job("together", 100, together, 140, LINES)
    job("1b", 60, bench, "1b", 60, *full, "--size", "1b")
    job("small", 40, bench, "small", 40, *full, "--size", "small")
    bad = [n for n, r in FOUND.items() if "failed" in r or r.get("status")]
    print(f"\n{len(FOUND)} jobs, {time.perf_counter() - BEGAN:.0f} s, failed: {bad or 'none'}")
    return len(bad)


if __name__ == "__main__":
    sys.exit(min(1, main()))
