"""What an evaluation costs by the number of examples asked about at a time: python -m benchmarks.evaluation [--help].

Each round goes through all sizes, beginning with another one, and takes the process CPU time of a pass over `--rows` random
images, with the sum of losses and right answers. Ratios are to batches of 1000. `*` is the size that dnnkit chooses.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import dnnkit
from dnnkit.data.loaders import EVALUATION_BATCH
from dnnkit.data.sizing import evaluation_batch

NETWORKS = {
    "mlp": ["data=mnist"],
    "deep": ["data=mnist", f"model.hidden={[100] * 20}".replace(" ", "")],
    "wide": ["data=mnist", "model.hidden=[2000,2000,2000]"],
    "cnn": ["data=mnist", "model=cnn"],
}
SIZES = (100, 200, 400, 800, EVALUATION_BATCH, 1600, 3200, 5000)


@dataclass
class Cost:
    """CPU seconds and page faults of each pass."""

    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)


def once(net: nn.Module, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Loss and share of right answers of all examples, measured of the whole as training does."""
    output = torch.cat([net(part) for part in torch.split(x, size)])
    return torch.stack([nn.functional.cross_entropy(output, y), (output.argmax(1) == y).float().mean()])


def measure(net: nn.Module, rows: int, rounds: int, sizes: tuple[int, ...]) -> dict[int, Cost]:
    """The cost of a pass by size; the first round warms up and is not in it."""
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 1, 28, 28, generator=drawn), torch.randint(0, 10, (rows,), generator=drawn)
    costs = {size: Cost() for size in sizes}
    with torch.inference_mode():
        for number in range(rounds + 1):
            first = number % len(sizes)
            for size in (*sizes[first:], *sizes[:first]):
                faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
                once(net, x, y, size)
                if number:
                    costs[size].seconds.append(time.process_time() - start)
                    costs[size].faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
    return costs


def show(name: str, chosen: int, costs: dict[int, Cost]) -> None:
    """A line for each size."""
    print(f"{name}\n{'batch':>7}  {'fastest ms':>10}  {'fastest ÷':>9}  {'q10 ÷':>6}  {'median ÷':>8}  {'faults':>7}")
    base = costs[EVALUATION_BATCH].seconds
    for size, cost in costs.items():
        tenth = len(base) // 10
        fastest, q10 = min(cost.seconds) / min(base), sorted(cost.seconds)[tenth] / sorted(base)[tenth]
        median = statistics.median(mine / theirs for mine, theirs in zip(cost.seconds, base, strict=True))
        star, ms, faults = "*" if size == chosen else " ", 1e3 * min(cost.seconds), int(statistics.median(cost.faults))
        print(f"{size:>6}{star}  {ms:>10.1f}  {fastest:>9.2f}  {q10:>6.2f}  {median:>8.2f}  {faults:>7}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.networks:
        net = dnnkit.build(dnnkit.compose([*NETWORKS[name], "trainer=cpu"])).eval().net
        chosen = evaluation_batch(net, (1, 28, 28), torch.float32, torch.device("cpu"))
        sizes = tuple(sorted({*SIZES, chosen}))
        show(
            f"{name}, {given.rows} rows, {given.threads} thread(s), {given.rounds} rounds",
            chosen,
            measure(net, given.rows, given.rounds, sizes),
        )


if __name__ == "__main__":
    main()
