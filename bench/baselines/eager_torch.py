#!/usr/bin/env python3
"""Checks and times the eager PyTorch baseline. See README.md beside this file."""

import argparse
import ctypes
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import torch

import eager_mamba3 as mamba3
from eager_training import TrainingModel

DOUBLE_BOUND = 1e-9
FLOAT_BOUND = 2e-4


def describe_machine():
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
    }


def keep_freed_memory():
    """Stops glibc from giving large temporaries back to the kernel at every operator.

    Page faults on fresh temporaries otherwise cost the scan a large part of its time.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, ctypes.c_int(2**31 - 1))


def relative_error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
def check_golden(folder, dtype, scan):
    """Largest relative error of the logits by prefill, by prefill in two pieces, and by steps."""
    from safetensors.torch import load_file

    golden = load_file(folder / "golden.safetensors")
    config = mamba3.config_from_json(folder / "config.json")
    model = mamba3.Model(config, mamba3.read_weights(folder), dtype, scan)
    ids, expected = golden["ids"], golden["logits"]
    errors = {}
    for name, sizes in (("prefill", {}), ("small chunks", {"chunk": 8, "block": 24})):
        found = model.prefill(ids, model.new_state(ids.shape[0]), every=True, **sizes)
        errors[name] = relative_error(found, expected)
    state = model.new_state(ids.shape[0])
    pieces = [model.prefill(ids[:, :7], state, every=True)]
    pieces.append(model.prefill(ids[:, 7:11], state, every=True))
    pieces += [model.step(ids[:, t], state).unsqueeze(1) for t in range(11, ids.shape[1])]
    errors["cut and steps"] = relative_error(torch.cat(pieces, 1), expected)
    return errors


@torch.inference_mode()
def check_logprobs(folder, dtype, scan, texts):
    """Largest and mean distance of log-probabilities from those computed in double precision."""
    golden = json.loads((folder / "golden_fp64.json").read_text())
    config = mamba3.config_from_json(folder / "config.json")
    model = mamba3.Model(config, mamba3.read_weights(folder), dtype, scan)
    distances = []
    for text in golden["logprobs"][:texts]:
        ids = torch.tensor(text["ids"])
        logits = model.prefill(ids.unsqueeze(0), model.new_state(1), every=True)[0, :-1]
        logits = logits[:, : config.vocab_size].to(model.compute)
        found = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
        distances.append((found.double() - torch.tensor(text["logprobs"]).double()).abs())
    distances = torch.cat(distances)
    return {"largest": distances.max().item(), "mean": distances.mean().item()}


def check_gradients(folder, dtype):
    """Largest relative error of a parameter's gradient, with chunks of 64 and of 8."""
    from safetensors.torch import load_file

    golden = load_file(folder / "golden.safetensors")
    config = mamba3.config_from_json(folder / "config.json")
    model = TrainingModel(config, mamba3.read_weights(folder), dtype)
    targets = torch.full_like(golden["ids"], -100)
    targets[:, :-1] = golden["ids"][:, 1:]
    worst = 0.0
    for chunk in (64, 8):
        model.backward(golden["ids"], targets, chunk)
        for name, leaf in model.leaves.items():
            expected = model.expected(name, golden[f"grad.{name}"])
            worst = max(worst, relative_error(leaf.grad, expected))
    return {"gradients": worst}


def has_gradients(folder):
    from safetensors import safe_open

    with safe_open(folder / "golden.safetensors", "pt") as golden:
        return any(name.startswith("grad.") for name in golden.keys())


def run_check(args):
    failed = 0
    for folder in map(pathlib.Path, args.folders):
        for dtype in args.dtype.split(","):
            bound = {"fp64": DOUBLE_BOUND, "fp32": FLOAT_BOUND}.get(dtype)
            if (folder / "golden.safetensors").exists():
                errors = check_golden(folder, dtype, args.scan_dtype)
                if dtype != "bf16" and has_gradients(folder):
                    errors |= check_gradients(folder, dtype)
                worst = max(errors.values())
            elif (folder / "golden_fp64.json").exists():
                errors = check_logprobs(folder, dtype, args.scan_dtype, args.texts)
                worst = errors["largest"]
                bound = FLOAT_BOUND if dtype == "fp64" else bound  # the file is rounded
            else:
                raise SystemExit(f"{folder}: no golden.safetensors, no golden_fp64.json")
            ok = bound is None or worst <= bound
            failed += not ok
            shown = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
            verdict = "" if bound is None else f"  [bound {bound:.0e}] {'ok' if ok else 'FAILED'}"
            print(f"{folder.name} {dtype}: {shown}{verdict}", flush=True)
    return 1 if failed else 0


def load_model(args):
    if args.model:
        config = mamba3.config_from_json(pathlib.Path(args.model) / "config.json")
        return mamba3.Model(config, mamba3.read_weights(args.model), args.dtype, args.scan_dtype)
    config = mamba3.preset(args.preset)
    kind = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    weights = mamba3.random_weights(config, dtype=kind)
    return mamba3.Model(config, weights, args.dtype, args.scan_dtype)


def summarise(name, tokens, seconds):
    """One row: tokens/s of the median repeat, with the spread of all of them."""
    ordered = sorted(seconds)
    median = statistics.median(ordered)
    row = {
        "name": name,
        "value": tokens / median,
        "unit": "tokens/s",
        "seconds_median": median,
        "seconds_min": ordered[0],
        "seconds_max": ordered[-1],
        "repeats": len(ordered),
    }
    low, middle, high = (1e3 * value for value in (ordered[0], median, ordered[-1]))
    print(
        f"{name}: {row['value']:.2f} tokens/s; median {middle:.2f} ms, {low:.2f} to {high:.2f}"
        f" (spread {100 * (high - low) / middle:.0f} %), {len(ordered)} repeats",
        flush=True,
    )
    return row


def tuned_chunk(model):
    """Fastest of 8 to 128; ranks multiply the rows of a chunk."""
    if not model.config.is_mimo:
        return 64
    return 32 if model.scan_dtype == torch.bfloat16 else 16


def time_prefill(model, name, args):
    rows = []
    chunk = args.chunk or tuned_chunk(model)
    sizes = {"chunk": chunk, "block": args.block, "segment": args.segment}
    for tokens in args.tokens:
        ids = torch.randint(model.config.vocab_size, (1, tokens))
        seconds = []
        for repeat in range(args.warmup + args.repeat):
            state = model.new_state(1)
            start = time.perf_counter()
            model.prefill(ids, state, every=args.all_logits, **sizes)
            if repeat >= args.warmup:
                seconds.append(time.perf_counter() - start)
        rows.append(summarise(f"prefill/{name}/tokens={tokens}", tokens, seconds) | sizes)
    return rows


def time_decode(model, name, args):
    rows = []
    for batch in args.batch:
        state = model.new_state(batch)
        prompt = torch.randint(model.config.vocab_size, (batch, 16))
        ids = model.prefill(prompt, state).argmax(-1)
        seconds = []
        for repeat in range(args.warmup + args.repeat):
            start = time.perf_counter()
            ids = model.step(ids, state).argmax(-1)
            if repeat >= args.warmup:
                seconds.append(time.perf_counter() - start)
        row = summarise(f"decode/{name}/batch={batch}", batch, seconds)
        state_bytes = sum(layer.ssm.nbytes for layer in state)
        row["bytes"] = model.weight_bytes() + 2 * state_bytes
        row["gigabytes_per_second"] = row["bytes"] / row["seconds_median"] / 1e9
        print(f"  weights and states: {row['gigabytes_per_second']:.2f} GB/s", flush=True)
        rows.append(row)
    return rows


def run_training(args):
    """Times forward and backward of one micro-batch, in fp32."""
    prepare()
    machine = describe_machine()
    print("machine: " + ", ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    rows = []
    for preset in args.preset.split(","):
        config = mamba3.preset(preset)
        model = TrainingModel(config, mamba3.random_weights(config, dtype=torch.float32))
        chunk = args.chunk or tuned_chunk(model)
        for batch in args.batch:
            ids, targets = torch.randint(config.vocab_size, (2, batch, args.tokens))
            seconds = []
            for repeat in range(args.warmup + args.repeat):
                start = time.perf_counter()
                model.backward(ids, targets, chunk)
                if repeat >= args.warmup:
                    seconds.append(time.perf_counter() - start)
            name = f"train/{preset}/fp32/batch={batch}/tokens={args.tokens}/pass"
            rows.append(summarise(name, batch * args.tokens, seconds) | {"chunk": chunk})
    write_rows(rows, machine, args)
    return 0


def profile(model, args):
    """Operator table of one call, to see where the baseline's own time goes."""
    state = model.new_state(1)
    tokens = args.tokens[0] if args.command == "prefill" else 16
    ids = torch.randint(model.config.vocab_size, (1, tokens))
    chunk = args.chunk or tuned_chunk(model)
    model.prefill(ids, state, chunk=chunk, block=args.block)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        if args.command == "prefill":
            model.prefill(ids, state, chunk=chunk, block=args.block)
        else:
            model.step(ids[:, 0], state)
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def prepare():
    keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)


def write_rows(rows, machine, args):
    if args.json:
        document = {"baseline": "eager PyTorch", "device": machine, "rows": rows}
        pathlib.Path(args.json).write_text(json.dumps(document, indent=1) + "\n")


@torch.inference_mode()
def run_timing(args):
    prepare()
    machine = describe_machine()
    print("machine: " + ", ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    model = load_model(args)
    name = f"{pathlib.Path(args.model).name if args.model else args.preset}/{args.dtype}"
    name += "+fp32-scan" if args.dtype == "bf16" and args.scan_dtype == "fp32" else ""
    if args.profile:
        profile(model, args)
        return 0
    rows = (time_prefill if args.command == "prefill" else time_decode)(model, name, args)
    write_rows(rows, machine, args)
    return 0


def integers(text):
    return [int(part) for part in text.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="compare with golden folders; exit 1 if one differs")
    check.add_argument("folders", nargs="+")
    check.add_argument("--dtype", default="fp64,fp32", help="list of fp64, fp32, bf16")
    check.add_argument("--texts", type=int, default=12, help="texts of golden_fp64.json to compare")
    check.add_argument("--threads", type=int, default=os.cpu_count())
    check.add_argument("--scan-dtype", default="auto", choices=("auto", "fp32"))
    for name, repeat in (("prefill", 7), ("decode", 50)):
        timing = commands.add_parser(name, help=f"time {name}")
        timing.add_argument("--preset", default="siso-187m", help="siso-187m ... mimo-1.5b")
        timing.add_argument("-m", "--model", help="checkpoint folder instead of a preset")
        timing.add_argument("--dtype", default="bf16", choices=("fp64", "fp32", "bf16"))
        timing.add_argument("--threads", type=int, default=os.cpu_count())
        timing.add_argument("--scan-dtype", default="auto", choices=("auto", "fp32"))
        timing.add_argument("--repeat", type=int, default=repeat)
        timing.add_argument("--warmup", type=int, default=2 if name == "prefill" else 5)
        timing.add_argument("--json", help="write the rows to this file")
        timing.add_argument("--profile", action="store_true", help="operator table instead")
        timing.add_argument("--chunk", type=int, default=0, help="tokens per chunk (0: tuned)")
        timing.add_argument("--block", type=int, default=256, help="tokens scanned at a time")
        if name == "prefill":
            timing.add_argument("--tokens", type=integers, default=[2048])
            timing.add_argument("--segment", type=int, default=2048, help="tokens per model pass")
            timing.add_argument("--all-logits", action="store_true", help="not only the last")
        else:
            timing.add_argument("--batch", type=integers, default=[1, 8, 32])
    training = commands.add_parser("train", help="time forward and backward of a micro-batch")
    training.add_argument("--preset", default="siso-24m,mimo-24m")
    training.add_argument("--threads", type=int, default=os.cpu_count())
    training.add_argument("--batch", type=integers, default=[2])
    training.add_argument("--tokens", type=int, default=512)
    training.add_argument("--repeat", type=int, default=7)
    training.add_argument("--warmup", type=int, default=2)
    training.add_argument("--chunk", type=int, default=0, help="tokens per chunk (0: tuned)")
    training.add_argument("--json", help="write the rows to this file")
    return parser.parse_args()


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    return {"check": run_check, "train": run_training}.get(args.command, run_timing)(args)


if __name__ == "__main__":
    sys.exit(main())
