"""What a careful person writes by hand: resident tensors, a permutation, fused SGD, nothing recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.jobs import EVALUATION_BATCH, ONE_CYCLE, PEAK_RATE, Boundary, Facts, Job, flat, load, parameters, perceptron


def train(job: Job, boundary: Boundary) -> Facts:
    torch.manual_seed(0)
    data = load(job)
    (x, y), validation, net = flat(data.train), flat(data.validation), perceptron(data)
    steps_per_epoch = -(-len(x) // job.batch_size)
    optimizer = torch.optim.SGD(net.parameters(), lr=PEAK_RATE, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, job.epochs * steps_per_epoch, **ONE_CYCLE)
    accuracy = 0.0
    for epoch in range(job.epochs):
        boundary()
        order = torch.randperm(len(x))
        for start in range(0, len(x), job.batch_size):
            rows = order[start : start + job.batch_size]
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        accuracy = validate(net, *validation)
        print(f"epoch {epoch + 1}/{job.epochs}  val acc {accuracy:.4f}")
    boundary()
    return {"parameters": parameters(net), "steps": job.epochs * steps_per_epoch, "val_acc": accuracy}


@torch.no_grad()
def validate(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of rows that are classified right."""
    net.eval()
    right = torch.zeros((), dtype=torch.int64)
    for part, target in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        right += (net(part).argmax(1) == target).sum()
    net.train()
    return float(right) / len(y)
