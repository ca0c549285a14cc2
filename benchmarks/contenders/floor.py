"""What a careful person writes by hand: resident tensors, a permutation, fused SGD or stock NAdam, nothing recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.jobs import EVALUATION_BATCH, Boundary, Facts, Work, load
from benchmarks.networks import network, optimizer, parameters, schedule, tensors


def train(work: Work, boundary: Boundary) -> Facts:
    torch.manual_seed(0)
    rows = load(work)
    ((x, y), validation), net = tensors(rows), network(work, rows)
    steps_per_epoch = -(-len(x) // work.batch_size)
    update = optimizer(work, net, fused=True)
    rates = schedule(work, update, work.epochs * steps_per_epoch)
    accuracy = 0.0
    for epoch in range(work.epochs):
        boundary()
        order = torch.randperm(len(x))
        for start in range(0, len(x), work.batch_size):
            chosen = order[start : start + work.batch_size]
            update.zero_grad()
            cross_entropy(net(x[chosen]), y[chosen]).backward()
            update.step()
            rates.step()
        accuracy = validate(net, *validation)
        print(f"epoch {epoch + 1}/{work.epochs}  val acc {accuracy:.4f}")
    boundary()
    return {"parameters": parameters(net), "steps": work.epochs * steps_per_epoch, "val_acc": accuracy}


@torch.no_grad()
def validate(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of rows that are classified right."""
    net.eval()
    right = torch.zeros((), dtype=torch.int64)
    for part, target in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        right += (net(part).argmax(1) == target).sum()
    net.train()
    return float(right) / len(y)
