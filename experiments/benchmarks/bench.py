"""The speed and memory of training, sampling and reading on this machine: `make bench`, or

    python -m experiments.benchmarks.bench --out bench.json

Everything is timed in rounds, beside a matrix product of the size that reaches the machine's float32 peak. Fractions of
the peak are medians over rounds of the ratio of both times, so that a load that slows both for a while does not count.
"""

import argparse
import copy
import logging
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import data_loading as reading
from experiments.benchmarks.timing import Product, matmul_peak, peak_memory, ratio, ratios, rounds, seconds
from experiments.benchmarks.training_step import TrainingStep
from warm_lightning.errors import UserError
from warm_lightning.paths import path_argument
from warm_lightning.records import machine, text_table, to_json, write_file

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG = REPOSITORY / "configs" / "cifar10_small.yaml"
DIGITS = REPOSITORY / "configs" / "digits.yaml"
HOT = REPOSITORY / "configs" / "method" / "hot.yaml"
SMALL, WIDE = "cifar10_small", "32 channels, 2-2-2"
NETWORKS: dict[str, dict[str, Any]] = {
    SMALL: {},
    WIDE: {
        "model.network.channel_mult": [2, 2, 2],
        "model.network.num_blocks": 4,
        "model.network.attn_resolutions": [16],
        "model.network.dropout": 0.13,
        "data.batch_size": 16,
    },
}
QUICK = {
    "model.network.model_channels": 8,
    "model.network.channel_mult": [1, 2],
    "model.network.num_blocks": 1,
    "data.batch_size": 4,
}
SIZES = (512, 1024, 2048, 4096)
PEAK_AIM, WARM_AIM, HELP_AIM = 0.75, 0.02, 2.0


def memory_of_training(overrides: Mapping[str, Any], device: str) -> int:
    """The bytes that two training steps need, of the GPU or of a process that does nothing else."""
    step = TrainingStep([CONFIG], overrides, device)
    step()
    step()
    return peak_memory(device)


def memory_of_each(networks: Mapping[str, Mapping[str, Any]], device: str) -> dict[str, int]:
    """The `memory_of_training` of several networks, each measured in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(networks), mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting = {n: pool.submit(memory_of_training, changes, device) for n, changes in networks.items()}
        return {name: future.result() for name, future in waiting.items()}


def measure_training(
    name: str, overrides: Mapping[str, Any], product: Product, device: str, limit: float
) -> dict[str, Any]:
    """The speed of eager and compiled steps of a network, and the shares of the parts of an eager one."""
    warm = TrainingStep([CONFIG], overrides, device)
    compiled = TrainingStep([CONFIG], {**overrides, "model.compile": True}, device)
    compile_seconds = seconds(compiled)
    calls: dict[str, Callable[[], Any]] = {
        "matmul": product,
        "eager": warm,
        "compiled": compiled,
        "forward process": warm.forward_process,
        "update": warm.update,
    }
    times = rounds(calls, f"Training {name}", limit)
    flops, share = warm.flops(), warm.product_share()

    def speed(mode: str) -> dict[str, float]:
        step = statistics.median(times[mode])
        return {
            "step_seconds": step,
            "images_per_second": warm.batch_size / step,
            "fraction_of_peak": flops / product.flops * ratio(times, "matmul", mode),
        }

    return {
        "parameters": sum(p.numel() for p in warm.module.network.parameters()),
        "batch_size": warm.batch_size,
        "rounds": len(times["eager"]),
        "flops_per_image": flops / warm.batch_size,
        "eager": speed("eager"),
        "compiled": speed("compiled") | {"compile_seconds": compile_seconds},
        "forward_process_share": ratio(times, "forward process", "eager"),
        "update_share": ratio(times, "update", "eager"),
        "product_share": share,
        "products_fraction_of_peak": speed("eager")["fraction_of_peak"] / share,
    }


def measure_warm_over_hot(overrides: Mapping[str, Any], device: str, limit: float) -> dict[str, Any]:
    """The additional cost of a warm step over a hot one, whose network has no second branch."""
    short = {**overrides, "data.batch_size": 4}  # many short rounds, since the difference is small
    warm, hot = TrainingStep([CONFIG], short, device), TrainingStep([CONFIG, HOT], short, device)

    def twice_hot() -> None:
        hot()
        hot()

    # In the order warm, hot, hot, warm a steady drift of the speed during a round cancels.
    times = rounds({"first": warm, "hot": twice_hot, "last": warm}, "Warm and hot", limit)
    times["warm"] = [first + last for first, last in zip(times["first"], times["last"], strict=True)]
    quartiles = [quartile - 1 for quartile in ratios(times, "warm", "hot")]
    flops = warm.flops() / hot.flops() - 1
    return {"rounds": len(times["hot"]), "median": quartiles[1], "quartiles": quartiles[::2], "flops": flops}


def measure_updates(overrides: Mapping[str, Any], device: str, limit: float) -> dict[str, Any]:
    """The times of Adam and of the average of weights, each in the general way and in that of `warm fit`.

    Beside them stand the shares of the weights that have other bits after as many updates in either way.
    """
    general, ours = TrainingStep([DIGITS], overrides, device), TrainingStep([DIGITS], overrides, device)
    for step in (general, ours):
        step.backward(step.module.network)
    module, average = ours.module, copy.deepcopy(ours.module.ema_network)
    adam = torch.optim.Adam(general.module.network.parameters(), module.lr, module.betas, module.eps)

    @torch.no_grad()
    def update_average() -> None:
        share = 1 - module.ema.decay(10**6, ours.batch_size)
        torch._foreach_lerp_(list(average.parameters()), list(module.network.parameters()), share)

    calls: dict[str, Callable[[], Any]] = {
        "Adam, fused=None": adam.step,
        "Adam of warm fit": ours.optimizer.step,
        "average, foreach": update_average,
        "average of warm fit": lambda: module.ema.update(module.ema_network, module.network, 10**6, ours.batch_size),
    }
    times = rounds(calls, "Updates", limit)
    return {
        "network": DIGITS.stem,
        "updates": len(times["average, foreach"]) + 1,
        "seconds": {name: statistics.median(of_call) for name, of_call in times.items()},
        "changed": {
            "Adam of warm fit": share_of_other_bits(general.module.network, module.network),
            "average of warm fit": share_of_other_bits(average, module.ema_network),
        },
    }


def share_of_other_bits(network: torch.nn.Module, other: torch.nn.Module) -> float:
    """The share of the weights of a network in which another one differs."""
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    return torch.cat([(a != b).flatten() for a, b in pairs]).double().mean().item()


def measure_sampling(overrides: Mapping[str, Any], device: str, limit: float) -> dict[str, Any]:
    """The images per second that averaged weights generate at the configuration's NFE, 35."""
    step = TrainingStep([CONFIG], overrides, device)
    model, sampler, seeds = step.module.model(), step.module.model().sampler, range(8)
    times = rounds({"sample": lambda: model.sample(sampler, seeds)}, "Sampling", limit, minimum=1)
    rate = len(seeds) / statistics.median(times["sample"])
    return {"nfe": sampler.nfe, "batch_size": len(seeds), "images_per_second": rate}


def help_seconds() -> float:
    """The seconds until `warm --help` has answered."""
    command = [sys.executable, "-m", "warm_lightning.cli", "--help"]
    calls = {"help": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=REPOSITORY)}
    return statistics.median(rounds(calls, "warm --help", limit=1)["help"])


def measure(device: str, quick: bool) -> dict[str, Any]:
    """All measurements, as plain data; with `quick` of tiny networks for a moment each."""
    networks = {name: changes | (QUICK if quick else {}) for name, changes in NETWORKS.items()}
    # This comes first, while this process is small: a new process inherits the peak of the one that starts it.
    memory = memory_of_each(networks, device)
    limit = 0.0 if quick else 45.0
    peak, product = matmul_peak(device, SIZES, 10.0) if not quick else matmul_peak(device, (256,), 0.0, work=1e8)
    training = {n: measure_training(n, changes, product, device, limit) for n, changes in networks.items()}
    for name, speeds in training.items():
        speeds["peak_memory_bytes"] = memory[name]
    return {
        "machine": machine(device),
        "matmul": peak,
        "training": training,
        "warm_over_hot": measure_warm_over_hot(networks[WIDE], device, 1.5 * limit),
        "updates": measure_updates(QUICK if quick else {}, device, limit / 4),
        "sampling": measure_sampling(networks[SMALL], device, limit / 4),
        "reading": reading.measure_reading(16 if quick else 512, seconds=0.05 if quick else 1.0),
        "help_seconds": help_seconds(),
    }


def limits(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the fraction of the peak that each network reaches, and on what keeps it below."""
    notes = []
    for name, speeds in results["training"].items():
        best = max(("eager", "compiled"), key=lambda mode: speeds[mode]["fraction_of_peak"])
        products, share = speeds["products_fraction_of_peak"], speeds["product_share"]
        aim = f" (aim {PEAK_AIM})" if name == WIDE else ""
        notes.append(
            f"{name}: {speeds[best]['fraction_of_peak']:.2f} of the matmul peak at best, {best}{aim}. Of the eager "
            f"step, convolutions and matrix products are {share:.0%} and run at {products:.2f} of the peak; the "
            f"other {1 - share:.0%} are normalisation, activations, dropout, copies, {speeds['update_share']:.1%} "
            f"Adam and the average, and {speeds['forward_process_share']:.1%} the forward process (draws, DCT, "
            f"blur, scaling, loss). With these for nothing it would reach {products:.2f}; with products at the "
            f"peak, {share:.2f}."
        )
    cost = results["warm_over_hot"]
    low, high = cost["quartiles"]
    notes.append(
        f"{WIDE}: a warm step costs {cost['median']:+.1%} over a hot one (aim {WARM_AIM:.0%}; quartiles of "
        f"{cost['rounds']} rounds {low:+.1%} and {high:+.1%}); FLOPs of the second branch are {cost['flops']:+.1%}."
    )
    return notes


def table(results: Mapping[str, Any]) -> str:
    """The results as text for a terminal."""
    where, matmul, sampling, updates = (results[name] for name in ("machine", "matmul", "sampling", "updates"))
    rows = []
    for name, speeds in results["training"].items():
        for mode in ("eager", "compiled"):
            speed = speeds[mode]
            gflops = speed["images_per_second"] * speeds["flops_per_image"] / 1e9
            rates = f"{speed['images_per_second']:.2f}", f"{gflops:.1f}", f"{speed['fraction_of_peak']:.2f}"
            rows.append([f"{name}, {mode}", *rates, f"{speed['step_seconds']:.2f}"])
    networks = [
        f"{name}: {speeds['parameters'] / 1e6:.2f} M parameters, batch {speeds['batch_size']}, peak memory "
        f"{speeds['peak_memory_bytes'] / 2**30:.2f} GiB, compiled in {speeds['compiled']['compile_seconds']:.0f} s"
        for name, speeds in results["training"].items()
    ]
    steps = []
    for name, duration in updates["seconds"].items():
        changed = updates["changed"].get(name)
        bits = "" if changed is None else f"{changed:.2%} of the weights after {updates['updates']} updates"
        steps.append([name, f"{1000 * duration:.2f}", bits])
    others = [
        ["float32 matmul peak", f"{matmul['flops'] / 1e9:.1f} GFLOP/s at size {matmul['size']}"],
        [
            f"sampling, NFE {sampling['nfe']}",
            f"{sampling['images_per_second']:.2f} images/s in batches of {sampling['batch_size']}",
        ],
        ["warm --help", f"{results['help_seconds']:.2f} s (aim {HELP_AIM:.0f})"],
    ]
    parts = [
        f"{where.get('gpu', where['cpu'])}: {where['threads']} threads of {where['cores']} cores, "
        f"{where['cpu_capability']}, torch {where['torch_version']}",
        text_table(others, "<<"),
        text_table([["training", "images/s", "GFLOP/s", "of peak", "s/step"], *rows], "<>>>>"),
        "\n".join(networks),
        text_table([[f"updates of {updates['network']}", "ms", "other bits than in the row above"], *steps], "<><"),
        f"one worker of the data loader\n{reading.table(results['reading'])}",
        *results["notes"],
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.bench", description="Speed and memory.")
    parser.add_argument("--out", required=True, type=path_argument, help="JSON file to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="cuda where there is one, if not given")
    parser.add_argument("--quick", action="store_true", help="tiny networks, not compiled, to try it out")
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.backends.cudnn.allow_tf32 = False  # the peak is that of float32, so convolutions must not use TF32
    try:
        with torch.compiler.set_stance("force_eager" if options.quick else "default"):
            results = measure(device, options.quick)
        results["notes"] = limits(results)
        results["seconds"] = round(time.perf_counter() - began)
        write_file(options.out, to_json(results).encode())
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(f"\n{table(results)}\n\nwritten to {options.out} after {results['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
