"""The tables of docs/results.md out of bench/results/referee.json, which referee.py writes. Prints them:

    tests/golden/referee_tables.py
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results/referee.json"

LABELS = {
    "torch_fp32": "PyTorch in fp32, one process",
    "worker": "**batchformer**",
    "local_attention": "attention per rank",
    "gather_without_gradient": "gather without gradient",
    "whole_loss_averaged": "whole loss on every rank, averaged",
    "mean_for_sum": "mean for sum",
    "mean_of_means": "mean of means, unequal slices",
    "local_batch_norm": "batch norm per rank",
}


def number(x):
    if x == 0:
        return "0"
    if x >= 0.01:
        return f"{100 * x:.1f} %"
    digits, exponent = f"{x:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def line(cells):
    return "| " + " | ".join(map(str, cells)) + " |\n"


def deviations(rows, steps):
    head = ["", "ranks", "loss, step 1", "gradient, step 1", "its worst tensor", "loss, 20 steps",
            f"loss, {steps} steps", f"weights, step {steps}"]
    out = line(head) + line(["---"] * len(head))
    for r in rows:
        keys = ("loss_step1", "grad_step1", "grad_step1_worst", "curve_20", "curve", "weights_of_way")
        numbers = [r[k] for k in keys]
        out += line([LABELS[r["name"]], r["ranks"], *map(number, numbers)])
    return out


def rates(tables, steps):
    head = ["", "ranks", "learning rate", f"loss, {steps} steps", "first step over 1e-4"]
    out = line(head) + line(["---"] * len(head))
    for t in tables:
        for r in t["rows"]:
            out += line([LABELS[r["name"]], r["ranks"], t["lr"], number(r["curve"]), r["first_step_over_1e-4"] or "none"])
    return out


def tables(doc):
    """In the page's order."""
    steps = len(doc["torch_fp64"])
    return [deviations(doc["rows"], steps), deviations(doc["worker_against_one_rank"], steps),
            rates(doc["higher_rates"], steps)]


if __name__ == "__main__":
    print("\n".join(tables(json.loads(RESULTS.read_text()))))
