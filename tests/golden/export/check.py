"""Reads exports with the tools that they are for, and computes again what can be.

    undertext export RUN --format open-unlearning --out DIR/open-unlearning
    undertext export RUN --format lm-eval --out DIR/lm-eval
    undertext export RUN --format muse-csv --out DIR/muse.csv
    undertext export RUN --format csv --out DIR/figures.csv
    python tests/golden/export/check.py RUN DIR

Python 3.11 with pandas 3.1.1, numpy 2.4.6, scikit-learn 1.9.1, rouge-score 0.1.2 and lm-eval 0.4.13 (its `make_table`
alone: neither torch nor transformers is needed). Nothing of it runs in the tests.
"""

import hashlib
import json
import math
import pathlib
import sys

import numpy as np
import pandas as pd
from lm_eval.utils import (
    get_file_datetime,
    get_file_task_name,
    get_results_filenames,
    get_sample_results_filenames,
    make_table,
    sanitize_model_name,
)
from rouge_score import rouge_scorer
from sklearn.metrics import roc_auc_score

RUN, DIR = map(pathlib.Path, sys.argv[1:3])
RECORD = json.loads((RUN / "report.json").read_text())
ARMS = {f"{arm['name']}@{arm['precision']}": arm for arm in RECORD["arms"]}
SETS = ["verbmem_forget", "knowmem_forget", "knowmem_retain"]
ROUGE = ["forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE"]


def near(a, b):
    assert (a is None) == (b is None) and (a is None or math.isclose(a, b, abs_tol=1e-9)), (a, b)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def share(metric):
    return None if metric["value"] is None else metric["value"] / 100


def tables():
    muse = pd.read_csv(DIR / "muse.csv")
    assert list(muse.columns) == ["name", "verbmem_f", "privleak", "knowmem_f", "knowmem_r"]
    assert list(muse["name"]) == list(ARMS)
    assert all(muse[column].dtype == np.float64 or muse[column].dtype == np.int64 for column in muse.columns[1:])
    for row in muse.itertuples():
        metrics = ARMS[row.name]["metrics"]
        near(row.verbmem_f, metrics["verbmem_forget"]["value"])
        near(row.knowmem_r, metrics["knowmem_retain"]["value"])
        if metrics["privleak"]["value"] is not None:
            near(row.privleak, metrics["privleak"]["value"])
    # An arm may be called nan or null; an empty cell is no number.
    long = pd.read_csv(DIR / "figures.csv", keep_default_na=False, na_values={"value": [""], "ci95_low": [""], "ci95_high": [""]})
    wide = long.pivot(index=["model", "precision"], columns="metric", values="value")
    for name, arm in ARMS.items():
        for metric in SETS:
            near(wide.loc[(arm["name"], arm["precision"]), metric], arm["metrics"][metric]["value"])
    assert len(long) == 15 * len(ARMS) + 3 * len(RECORD["recovery"]), len(long)


def open_unlearning():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for name, arm in ARMS.items():
        folder = DIR / "open-unlearning" / sanitize_model_name(name)
        text = (folder / "MUSE_EVAL.json").read_text()
        logs = json.loads(text)
        assert list(logs) == sorted(logs)
        # As save_logs of open-unlearning writes it, but for letters beyond ASCII.
        assert text == json.dumps(logs, indent=4, ensure_ascii=False), name
        for metric, ours in zip(ROUGE, SETS):
            items = logs[metric]["value_by_index"].values()
            near(logs[metric]["agg_value"], float(np.mean([item["rougeL_f1"] for item in items])))
            near(logs[metric]["agg_value"], share(arm["metrics"][ours]))
            for item in items:
                want = scorer.score(item["ground_truth"], item["generation"])
                near(item["rouge1_recall"], want["rouge1"].recall)
                near(item["rougeL_recall"], want["rougeL"].recall)
                near(item["rougeL_f1"], want["rougeL"].fmeasure)
        scores = {
            split: [item["score"] for item in logs["mia_min_k"][split]["value_by_index"].values()]
            for split in ["forget", "holdout"]
        }
        auc = roc_auc_score([0] * len(scores["forget"]) + [1] * len(scores["holdout"]), sum(scores.values(), []))
        near(logs["mia_min_k"]["auc"], float(auc))
        # privleak as open-unlearning takes it from two logs.
        reference = arm["metrics"]["privleak"]["reference_auc"]
        if reference:
            near(logs["privleak"]["agg_value"], (1 - auc - reference) / reference * 100)
        summary = json.loads((folder / "MUSE_SUMMARY.json").read_text())
        assert summary == {key: log["agg_value"] for key, log in logs.items() if log["agg_value"] is not None}


def lm_eval():
    for name, arm in ARMS.items():
        folder = DIR / "lm-eval" / sanitize_model_name(name)
        files = [str(path) for path in folder.iterdir()]
        (path,) = get_results_filenames(files)
        results = json.loads(pathlib.Path(path).read_text())
        print(name)
        print(make_table(results))
        assert results["model_name_sanitized"] == folder.name
        for path in get_sample_results_filenames(files):
            file = pathlib.Path(path)
            task = get_file_task_name(file.name)
            assert get_file_datetime(file.name) in results_name(files)
            samples = [json.loads(line) for line in file.read_text().split("\n") if line]
            assert len(samples) == results["n-samples"][task]["original"]
            hashes = ""
            for sample in samples:
                doc = json.dumps(sample["doc"], indent=2, ensure_ascii=False)
                assert sample["doc_hash"] == sha256(doc)
                assert sample["prompt_hash"] == sha256(sample["arguments"]["gen_args_0"]["arg_0"])
                assert sample["target_hash"] == sha256(sample["target"])
                hashes += sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"]
            assert results["task_hashes"][task] == sha256(hashes)
            figures = results["results"][task]
            for metric in ["rougeL", "probability", "exact_memorization", "extraction_strength"]:
                if f"{metric},none" not in figures:
                    continue
                scores = np.array([sample[metric] for sample in samples])
                near(figures[f"{metric},none"], float(scores.mean()))
                error = figures[f"{metric}_stderr,none"]
                if len(scores) > 1:
                    near(error, float(scores.std(ddof=1) / np.sqrt(len(scores))))
                else:
                    assert error == "N/A"


def results_name(files):
    return get_results_filenames(files)[0]


tables()
open_unlearning()
lm_eval()
print(f"{len(ARMS)} arms: all as it should be")
