"""`python -m benchmarks.contenders.start_template`: a script as Lightning's templates have it, digits for one epoch, then the test."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.contenders.of_lightning import callbacks, mlflow_logger
from benchmarks.contenders.template import Classifier, loaders
from benchmarks.jobs import DIGITS, Rows, Work
from benchmarks.networks import network


def main() -> None:
    pl.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype(np.float32), y, test_size=0.2, stratify=y, random_state=0)
    x, x_val, y, y_val = train_test_split(x, y, test_size=300, stratify=y, random_state=0)
    mean, deviation = x.mean(), x.std()
    rows = Rows((x - mean) / deviation, y, (x_val - mean) / deviation, y_val)
    work = Work(DIGITS, "", 32, 1)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=mlflow_logger(), callbacks=callbacks(5, True))
    trainer.fit(Classifier(network(work, rows), work, 10), *loaders(work, rows))
    test = TensorDataset(torch.from_numpy((x_test - mean) / deviation), torch.from_numpy(y_test))
    trainer.test(dataloaders=DataLoader(test, 1000), ckpt_path="best", weights_only=True)


if __name__ == "__main__":
    main()
