"""Using a run that has been: measured again, and asked for predictions. Oracles: NumPy in float64, and the run's own journal."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dnnkit
from dnnkit.checkpoint import load
from dnnkit.cli.main import main
from dnnkit.errors import CheckpointError, ConfigError, DataError
from dnnkit.record import read_journal
from dnnkit.sender.find import find_run
from dnnkit.training.evaluate import Evaluated, evaluate
from dnnkit.training.finished import open_run
from dnnkit.training.predict import Predicted, predict, predict_file

QUICK = ("tracking=none", "trainer.progress_bar=false", "trainer.max_epochs=2", "trainer.limit_train_batches=20")

TABLE = """\
size,sort,wet,kind
{rows}"""


def table(n: int, seed: int = 0, target: str = "kind") -> str:
    """A csv with a number (sometimes missing), a category, a truth value, and a class or a value."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        size, sort, wet = rng.normal(50, 20), rng.choice(["oak", "fir", "ash"]), rng.random() < 0.5
        kind = "big" if size + 20 * (sort == "oak") > 60 else "small"
        last = kind if target == "kind" else f"{1000 + 3 * size + 10 * wet:.3f}"
        rows.append(f"{'' if rng.random() < 0.05 else f'{size:.2f}'},{sort},{'true' if wet else 'false'},{last}")
    return f"size,sort,wet,{target}\n" + "\n".join(rows) + "\n"


RUNS: dict[str, tuple[str, ...]] = {
    "digits": ("normalization=batch_norm", "dropout=dropout"),
    "digits in 64 bits": ("trainer.precision=64",),
    "digits in 16 bits": ("trainer.precision=bf16",),
    "iris": ("data=iris",),
    "diabetes": ("data=diabetes", "optimizer.lr=0.001"),
    "autoencoder": ("model=autoencoder", "optimizer.lr=0.001"),
    "csv": ("data=csv", "data.path=trees.csv", "data.target=kind"),
    "csv values": ("data=csv", "data.path=heights.csv", "data.target=height", "optimizer.lr=0.001"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One short run of each kind, in one folder; the tests change nothing in them."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("finished")
    os.chdir(folder)
    try:
        Path("trees.csv").write_text(table(400))
        Path("heights.csv").write_text(table(400, target="height"))
        yield {name: dnnkit.train(dnnkit.compose([*QUICK, *words])).run_dir for name, words in RUNS.items()}
    finally:
        os.chdir(here)


@pytest.fixture
def here(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the runs, entered."""
    folder = runs["digits"].parent.parent
    monkeypatch.chdir(folder)
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


def dense_network(run: Path, x: np.ndarray) -> np.ndarray:
    """What the dense layers of a SELU network in the checkpoint give for standardised x, in NumPy float64."""
    weights = {name.removeprefix("net."): w.double().numpy() for name, w in load(run / "checkpoints" / "best.ckpt")["state_dict"].items()}
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    names = sorted(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))
    for name in names:
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        if name != names[-1]:
            x = scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    return x


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# evaluate


@pytest.mark.parametrize("name", RUNS)
def test_evaluate_gives_the_numbers_of_the_journal_bit_for_bit_and_writes_nothing(name: str, runs: dict[str, Path], here: Path) -> None:
    before = content(here)
    found = evaluate(runs[name])
    assert content(here) == before
    rows = read_journal(runs[name] / "metrics.jsonl")
    journal = {row.key.removeprefix("test/"): row.value for row in rows if row.key.startswith("test/")}
    assert found.metrics == journal == found.recorded
    assert "loss" in journal
    assert found.same_data
    assert not found.notices
    assert evaluate(runs[name], split="validation").metrics.items() <= {
        row.key.removeprefix("val/"): row.value
        for row in rows
        if row.key.startswith("val/") and row.step == found.step
    }.items()  # fmt: skip


def test_other_metrics_and_splits_agree_with_scikit_learn(runs: dict[str, Path], here: Path) -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    found = evaluate(runs["diabetes"], ["metrics=[mae,r2]"], split="train")
    run = open_run(runs["diabetes"])
    data = dnnkit.training.assemble.load_data(run.cfg)
    x, y = data.train.x.double().numpy(), data.target_scaling.undo(data.train.y).numpy()
    predicted = dense_network(runs["diabetes"], x) * run.target_scaling.std.numpy() + run.target_scaling.mean.numpy()
    assert found.rows == len(x)
    assert list(found.metrics) == ["loss", "mae", "r2"]
    assert found.metrics["mae"] == pytest.approx(mean_absolute_error(y, predicted), rel=1e-5)
    assert found.metrics["r2"] == pytest.approx(r2_score(y, predicted), rel=1e-4, abs=1e-5)
    assert not found.recorded


@pytest.mark.parametrize(("name", "file", "target"), [("csv", "others.csv", "kind"), ("csv values", "higher.csv", "height")])
def test_other_data_are_told_of_and_standardised_as_the_runs_own_were(
    name: str, file: str, target: str, runs: dict[str, Path], here: Path
) -> None:
    Path(file).write_text(table(300, seed=5, target=target))
    try:
        found = evaluate(runs[name], [f"data.path={file}"])
        (notice,) = found.notices
        assert "not the data that the run was trained on" in notice
        assert not found.same_data
        assert not found.recorded
        # The same rows through predict, which knows no other statistics than the checkpoint's.
        run = open_run(runs[name])
        lines = Path(file).read_text().splitlines()
        source = dnnkit.training.assemble._source(run.cfg.changed(data={**run.cfg.data, "path": file}))
        values = run.cfg.values["data"]
        settings = {key: values[key] for key in ("val_size", "test_size", "split")}
        raw = dnnkit.data.prepare("csv", source, **settings, standardize="none", standardize_target=False, seed=0, stream=True)
        chosen = raw.test.x.rows.tolist()
        Path("part.csv").write_text("\n".join([lines[0], *(lines[1 + row] for row in chosen)]) + "\n")
        same = predict_file(run, "part.csv", "part_out.csv", overwrite=True)
        assert same.rows == found.rows
        assert dict(found.metrics) == pytest.approx(same.metrics, rel=1e-6)
    finally:
        Path(file).unlink()


def test_a_table_that_would_be_encoded_otherwise_is_refused(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(table(300).replace("oak", "elm"))
    with pytest.raises(DataError, match=r"encoded otherwise.*\n.*dnnkit predict"):
        evaluate(runs["csv"], [f"data.path={tmp_path / 'new.csv'}"])


@pytest.mark.parametrize("word", ["optimizer.lr=1", "model.hidden=[3]", "data=wine", "seed=3", "metric=[acc]"])
def test_what_would_need_another_network_cannot_be_changed(word: str, runs: dict[str, Path], here: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be changed here"):
        evaluate(runs["digits"], [word])
    with pytest.raises(ConfigError, match="no metric is called 'accc'"):
        evaluate(runs["digits"], ["metrics=[accc]"])


def test_the_command_says_that_the_numbers_are_the_journals(runs: dict[str, Path], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", runs["digits"].name[-8:]]) == 0
    assert "equal to the run's journal, bit for bit" in capsys.readouterr().out
    assert main(["evaluate", str(runs["digits"]), "--split", "train", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["split"], shown["rows"], shown["notices"]) == ("train", 1294, [])
    assert main(["evaluate", runs["digits"].name, "--split=tests"]) == 2
    assert "Did you mean 'test'" in capsys.readouterr().err


# predict


def test_predicted_probabilities_are_the_softmax_of_the_network_in_numpy(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    images, labels = digits()
    np.savez(tmp_path / "x.npz", x=images.astype(np.uint8)[:100], y=labels[:100])
    plain = dnnkit.train(dnnkit.compose([*QUICK, "name=plain"])).run_dir
    mean, std = (load(plain / "checkpoints" / "best.ckpt")["dnnkit"][key].numpy() for key in ("mean", "std"))
    expected = softmax(dense_network(plain, ((images[:100, None] - mean) / std).reshape(100, -1)))
    found = predict_file(plain, tmp_path / "x.npz", tmp_path / "out.csv", batch_size=7)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "prediction", *(f"p_{digit}" for digit in range(10))]
    assert [int(row["row"]) for row in rows] == list(range(1, 101))
    shares = np.array([[float(row[f"p_{digit}"]) for digit in range(10)] for row in rows])
    np.testing.assert_allclose(shares, expected, atol=2e-6)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    assert [row["prediction"] for row in rows] == [str(digit) for digit in shares.argmax(1)]
    assert found.metrics["acc"] == pytest.approx((expected.argmax(1) == labels[:100]).mean())
    assert found.metrics["loss"] == pytest.approx(-np.log(expected[np.arange(100), labels[:100]]).mean(), rel=1e-4)
    assert found.rows == 100


def test_values_are_predicted_in_the_units_of_the_target(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    from sklearn.datasets import load_diabetes
    from sklearn.metrics import mean_absolute_error

    bunch = load_diabetes(scaled=False)
    run = open_run(runs["diabetes"])
    names = list(run.state.columns)
    frame = dict(zip(bunch.feature_names, bunch.data.T, strict=True))
    shuffled = names[::-1]
    lines = [",".join(["note", *shuffled])] + [",".join(["x", *(repr(float(frame[name][row])) for name in shuffled)]) for row in range(50)]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    found = predict_file(run, tmp_path / "in.csv", tmp_path / "out.csv")
    x = np.stack([frame[name][:50] for name in names], 1)
    scaled = dense_network(runs["diabetes"], (x - run.state.mean.numpy()) / run.state.std.numpy())
    expected = scaled * run.state.target_std.numpy() + run.state.target_mean.numpy()
    with open(tmp_path / "out.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["row", *(run.state.targets or ("value",))]
    assert [int(row[0]) for row in rows] == list(range(1, 51))
    np.testing.assert_allclose([float(row[1]) for row in rows], expected[:, 0], rtol=1e-5)
    assert found.notices == ("not among the columns of training, ignored: 'note'",)
    np.savez(tmp_path / "in.npz", x=x, y=bunch.target[:50])
    measured = predict_file(run, tmp_path / "in.npz", tmp_path / "out.npz").metrics
    assert measured["mae"] == pytest.approx(mean_absolute_error(bunch.target[:50], expected[:, 0]), rel=1e-5)
    held = np.load(tmp_path / "out.npz", allow_pickle=False)
    np.testing.assert_allclose(held["values"], expected, rtol=1e-5)
    assert list(held) == ["row", "values", "targets"]


def test_a_table_is_encoded_as_in_training_without_its_file(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    lines = table(60, seed=9).splitlines()
    lines[5] = "40.00,elm,true,small"
    (tmp_path / "new.csv").write_text("\n".join([*lines, ""]))
    hidden = here / "trees.csv"
    hidden.rename(here / "gone.csv")
    try:
        found = predict_file(runs["csv"], tmp_path / "new.csv", tmp_path / "out.csv")
    finally:
        (here / "gone.csv").rename(hidden)
    (notice,) = found.notices
    assert "'elm' is no category of training" in notice
    assert "line 6" in notice
    run = open_run(runs["csv"])
    features = list(run.state.columns)
    raw = np.full((60, len(features)), np.nan)
    for row, line in enumerate(lines[1:]):
        size, sort, wet, _ = line.split(",")
        raw[row, features.index("size")] = float(size) if size else np.nan
        raw[row, features.index("wet")] = wet == "true"
        for category in ("ash", "fir", "oak"):
            raw[row, features.index(f"sort={category}")] = sort == category
    raw = np.where(np.isnan(raw), run.state.fill.numpy(), raw)
    expected = softmax(dense_network(runs["csv"], (raw - run.state.mean.numpy()) / run.state.std.numpy()))
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([[float(row["p_big"]), float(row["p_small"])] for row in rows], expected, atol=2e-6)
    truth = [line.rsplit(",")[-1] for line in lines[1:]]
    assert found.metrics["acc"] == pytest.approx(np.mean([row["prediction"] == kind for row, kind in zip(rows, truth, strict=True)]))


def test_a_reconstruction_is_in_raw_units_and_shape(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    images, _ = digits()
    np.savez(tmp_path / "x.npz", x=images[:30].astype(np.float32))
    with pytest.raises(ConfigError, match=r"must end in .npz, because this run reconstructs"):
        predict_file(runs["autoencoder"], tmp_path / "x.npz", tmp_path / "out.csv")
    found = predict_file(runs["autoencoder"], tmp_path / "x.npz", tmp_path / "out.npz")
    values = np.load(tmp_path / "out.npz")["values"]
    assert values.shape == (30, 1, 8, 8)
    assert found.metrics["mse"] == pytest.approx(((values[:, 0] - images[:30]) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "digits in 64 bits", "digits in 16 bits", "autoencoder"])
def test_predict_and_evaluate_measure_the_same(name: str, runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    run = open_run(runs[name])
    data = dnnkit.training.assemble.load_data(run.cfg)
    raw = run.scaling.undo(data.test.x).round()
    assert torch.equal(run.scaling.apply(raw), data.test.x)
    np.savez(tmp_path / "x.npz", x=raw.numpy().astype(np.uint8), **({} if name == "autoencoder" else {"y": data.test.y.numpy()}))
    assert predict_file(run, tmp_path / "x.npz", tmp_path / "out.npz").metrics == evaluate(run).metrics


def test_predict_takes_tensors_and_gives_probabilities_or_values(runs: dict[str, Path], here: Path) -> None:
    images, _ = digits()
    x = torch.from_numpy(images[:5, None])
    shares = predict(open_run(runs["digits"]), x)
    assert shares.shape == (5, 10)
    assert shares.dtype == torch.float64
    torch.testing.assert_close(shares.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(predict(open_run(runs["digits"]), x[2:3]), shares[2:3], rtol=1e-5, atol=1e-7)  # no statistics of the batch
    assert predict(open_run(runs["autoencoder"]), x).shape == (5, 1, 8, 8)
    with pytest.raises(DataError, match=r"shape \(n, 1, 8, 8\), got \(5, 8, 8\)"):
        predict(open_run(runs["digits"]), x[:, 0])


GOOD = "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3,1,0.2\n6,3,4,1.2\n"


@pytest.mark.parametrize(
    ("run", "name", "text", "why"),
    [
        ("iris", "in.csv", GOOD.replace("petal width (cm)", "petal widht (cm)"), r"no column 'petal width \(cm\)'.*\n.*petal widht"),
        ("iris", "in.csv", GOOD.replace("1.2", "wide"), r"'wide' in line 3"),
        ("iris", "in.csv", GOOD.replace("1.2", ""), r"column 'petal width \(cm\)' is missing in line 3\n.*no missing values"),
        ("iris", "in.csv", GOOD.replace("1.2", "1e39"), r"finite in float32, got '1e39' in line 3"),
        ("iris", "in.csv", GOOD.splitlines()[0] + "\n", r"a header and no rows"),
        ("iris", "in.csv", "", r"in.csv"),
        ("iris", "in.xlsx", GOOD, r"with the ending .xlsx\n.*\.csv"),
        ("iris", "in", GOOD, r"a file without an ending"),
        ("iris", "no.csv", None, r"there is no file .*no.csv"),
        ("iris", "in.npz", GOOD, r"is not an .npz archive"),
        ("digits", "in.csv", GOOD, r"not trained on a table.*\n.*\(n, 1, 8, 8\)"),
        ("csv", "in.csv", "size,sort\n1,oak\n", r"no column 'wet'"),
    ],
)
def test_an_input_that_cannot_be_used_is_exit_code_4_and_leaves_no_output(
    run: str, name: str, text: str | None, why: str, runs: dict[str, Path], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    if text is not None:
        (tmp_path / name).write_text(text)
    assert main(["predict", str(runs[run]), "--input", str(tmp_path / name), "--output", str(tmp_path / "out.csv")]) == 4
    assert re.search(why, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if text is not None else [])


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": np.zeros((3, 9, 9))}, r"shape \(n, 1, 8, 8\), as the run's examples, got \(3, 9, 9\)"),
        ({"x": np.zeros((0, 8, 8))}, r"holds no example"),
        ({"x1": np.zeros((3, 8, 8))}, r"no key 'x'\n.*did you mean x1"),
        ({"x": np.full((3, 8, 8), np.nan)}, r"value 0 of the example is missing in row 1"),
        ({"x": np.array([["a"] * 8] * 8)[None]}, r"must hold real numbers"),
        ({"x": np.array([[[None] * 8] * 8])}, r"Python objects"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(arrays: dict[str, Any], why: str, runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match=why):
        predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_targets_of_arrays_are_names_or_indices_and_others_are_told_of(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    images, labels = digits()

    def predicted(y: Any) -> Predicted:
        np.savez(tmp_path / "in.npz", x=images[:20], y=y)
        return predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / "out.npz", overwrite=True)

    assert predicted(labels[:20]).metrics == predicted(labels[:20].astype(str)).metrics != {}
    wrong = predicted(np.where(np.arange(20) == 7, 99, labels[:20]))
    assert not wrong.metrics
    assert wrong.notices == (f"the target is not used: {tmp_path / 'in.npz'}: key 'y' must hold classes of training, got '99' in row 8",)


def test_pixels_in_other_units_are_told_of(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    images, _ = digits()
    np.savez(tmp_path / "in.npz", x=images[:20] / 255)
    (notice,) = predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / "out.npz").notices
    assert "in the units of training?" in notice


def test_an_output_is_never_overwritten_by_accident_nor_half_made(
    runs: dict[str, Path], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = digits()
    np.savez(tmp_path / "in.npz", x=images[:20])
    (tmp_path / "out.csv").write_text("precious")

    def again(output: str, **keywords: Any) -> None:
        predict_file(runs["digits"], tmp_path / "in.npz", tmp_path / output, **keywords)

    with pytest.raises(ConfigError, match=r"is there already.*--overwrite"):
        again("out.csv")
    with pytest.raises(ConfigError, match="is the input itself"):
        again("in.npz", overwrite=True)
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.npz"):
        again("out.json")
    with monkeypatch.context() as patch:
        patch.setattr(csv, "writer", lambda *arguments, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again("out.csv", overwrite=True)
    assert (tmp_path / "out.csv").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.csv"]
    again("out.csv", overwrite=True)
    assert (tmp_path / "out.csv").read_text().startswith("row,prediction,p_0")
    assert main(["predict", str(runs["digits"]), "--input", "in.npz", "--output", "/no/such/folder/out.csv"]) == 8


def test_rows_are_counted_from_1_in_every_format(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    import pandas as pd

    text = GOOD.replace("\n5", "\n\n\n5")  # the rows are lines 4 and 5
    (tmp_path / "in.csv").write_text(text)
    frame = pd.read_csv(tmp_path / "in.csv")
    frame.to_parquet(tmp_path / "in.parquet")
    np.savez(tmp_path / "in.npz", x=frame.to_numpy())
    written = []
    for name in ("in.csv", "in.parquet", "in.npz"):
        predict_file(runs["iris"], tmp_path / name, tmp_path / "out.csv", overwrite=True)
        predict_file(runs["iris"], tmp_path / name, tmp_path / "out.npz", overwrite=True)
        written.append((tmp_path / "out.csv").read_text())
        assert [line.split(",")[0] for line in written[-1].splitlines()] == ["row", "1", "2"]
        assert np.load(tmp_path / "out.npz")["row"].tolist() == [1, 2]
    assert len(set(written)) == 1


def test_a_target_called_row_keeps_its_name(workdir: Path) -> None:
    Path("t.csv").write_text("a,row\n" + "".join(f"{i * i % 17},{i}.5\n" for i in range(80)))
    run = dnnkit.train(dnnkit.compose([*QUICK, "data=csv", "data.path=t.csv", "data.target=row", "optimizer.lr=0.001"])).run_dir
    found = predict_file(run, "t.csv", "out.csv")
    assert Path("out.csv").read_text().splitlines()[0] == "row_number,row"
    assert found.notices == ("a target is called 'row': the column 'row_number' has the numbers of the rows",)


def test_a_gap_in_a_column_that_had_none_is_filled_and_told(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("size,sort,wet\n,oak,\n40,,true\n50,fir,\n")
    notices = predict_file(runs["csv"], tmp_path / "in.csv", tmp_path / "out.csv").notices
    sort, wet = (notice.removeprefix(f"{tmp_path / 'in.csv'}: ") for notice in notices)  # size had gaps in training too
    assert sort == "column 'sort' has no value in line 3; training missed none there: it sets none of the categories"
    assert wet == "column 'wet' has no value in 2 rows, the first is line 2; training missed none there: the training mean is put there"


def test_other_data_may_have_gaps_where_the_runs_own_had_none(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(table(300).replace("true", "", 1))
    assert evaluate(runs["csv"], [f"data.path={tmp_path / 'new.csv'}"]).metrics


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (GOOD.replace("1.2", "wide"), "mend it"),
        (GOOD.splitlines()[0] + "\n", "at least one row"),
        (GOOD.replace("petal width", "PETAL WIDTH"), r"did you mean 'PETAL WIDTH \(cm\)'"),
        (None, "^$"),
    ],
)
def test_the_cure_for_a_file_to_predict_names_no_setting(
    text: str | None, cure: str, runs: dict[str, Path], here: Path, tmp_path: Path
) -> None:
    import re

    if text is not None:
        (tmp_path / "in.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        predict_file(runs["iris"], tmp_path / "in.csv", tmp_path / "out.csv")
    assert re.search(cure, caught.value.cure)
    assert "data." not in caught.value.cure


def test_one_prediction_is_told_in_the_singular(
    runs: dict[str, Path], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("\n".join(GOOD.splitlines()[:2]))
    assert main(["predict", str(runs["iris"]), "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]) == 0
    assert capsys.readouterr().out.startswith("1 prediction of ")


def test_predict_needs_no_mlflow_and_no_working_folder(runs: dict[str, Path], here: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD)
    words = ["predict", str(runs["iris"]), "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"), "--json"]
    script = f"import sys\nfrom dnnkit.cli.main import main\nassert main({words!r}) == 0\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["rows"] == 2
    assert "mlflow" not in done.stderr.split()
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


# finding a run


def test_a_run_is_found_by_path_name_id_uuid_and_mlflow_id(runs: dict[str, Path], here: Path, workdir: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(runs["iris"], workdir / "runs" / runs["iris"].name))
    uuid = json.loads((folder / "run.json").read_text())["uuid"]
    (folder / "sender.json").write_text(json.dumps({"tracking_uri": "x", "run_id": "0a1b2c"}))
    for word in (folder, folder.name, folder.name[:-4], folder.name[-8:], uuid, "0a1b2c", f"runs/{folder.name}"):
        assert find_run(word) == folder
    assert find_run(folder.name[-8:], runs=workdir / "runs") == folder
    twin = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}x")))
    assert find_run(folder.name) == folder  # a whole name before the beginning of another
    with pytest.raises(CheckpointError, match=r"is the name of 2 runs:\n.*\n.*x\n"):
        find_run(folder.name[:-2])
    shutil.rmtree(twin)
    with pytest.raises(CheckpointError, match=rf"there is no run.*\n.*Did you mean {folder.name}"):
        find_run(folder.name[-8:-1] + "z")
    with pytest.raises(CheckpointError, match="holds no run"):
        find_run("x", runs=workdir / "none")


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--input", "in.npz", "--output", "out.csv"]])
def test_a_damaged_or_missing_checkpoint_is_exit_code_6(
    command: list[str], runs: dict[str, Path], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = Path(shutil.copytree(runs["digits"], workdir / "runs" / runs["digits"].name))
    best = folder / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    for damage in (whole[:-200], whole[: len(whole) // 2] + b"\0\0\0\0" + whole[len(whole) // 2 + 4 :], b""):
        best.write_bytes(damage)
        assert main([*command, folder.name]) == 6
        assert "damaged" in capsys.readouterr().err
    best.unlink()
    assert main([*command, folder.name]) == 6
    assert "There is: last." in capsys.readouterr().err
    assert main([*command, folder.name, "--checkpoint", "lats"]) == 2
    assert "Did you mean 'last'" in capsys.readouterr().err
    assert main([*command, "nothing"]) == 6


def test_a_checkpoint_with_a_config_of_another_installation_is_refused(runs: dict[str, Path], workdir: Path) -> None:
    import shutil

    from dnnkit.checkpoint import save

    folder = Path(shutil.copytree(runs["digits"], workdir / "runs" / runs["digits"].name))
    path = folder / "checkpoints" / "best.ckpt"
    held = load(path)
    held["dnnkit"]["config"]["activation"] = {"name": "sellu"}
    save(held, path)
    with pytest.raises(CheckpointError, match=r"not one of this installation:\n  - activation.*sellu"):
        open_run(folder)


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "predict", "resume"):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"dnnkit {command} RUN" in said.splitlines()[0]
        assert "Exit codes" in said
        assert main([command]) == 2
        assert "name the run" in capsys.readouterr().err
        assert main([command, "x", "--jsn"]) == 2
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"dnnkit {command} RUN" in said for command in ("evaluate", "predict", "resume"))


def test_evaluated_says_whether_the_data_are_the_runs_own() -> None:
    facts: dict[str, Any] = {"run_dir": Path(), "uuid": "", "checkpoint": "best", "step": 1, "split": "test", "rows": 1}
    assert Evaluated(**facts, metrics={}, recorded={}, fingerprint="a", trained_on="a", notices=()).same_data
    assert not Evaluated(**facts, metrics={}, recorded={}, fingerprint="a", trained_on=None, notices=()).same_data
