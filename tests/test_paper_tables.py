"""The paper's tables beside measured ones."""

from __future__ import annotations

from pathlib import Path

import yaml

from kdnotes import probes
from kdnotes.book import page_tables, results
from kdnotes.probes.base import Outcome

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "book" / "paper-tables.yml"


def test_each_number_stands_beside_the_mean_and_the_difference_from_students_alone(
    tmp_path: Path,
) -> None:
    values = {"independent": (0.70, 0.72, 0.74), "kl": (0.9, 0.91, 0.92), "crd": (0.5, 0.51, 0.53)}
    rows = [
        (arm, seed, "domain=color", "accuracy", value)
        for arm, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    outcome = Outcome.of_rows(rows)
    about = {"dataset": "mnist", "train_count": 10, "teacher": "a", "student": "b", "seeds": 3}
    where = tmp_path / "published" / "mnist"
    results.save("domain-adaptation", outcome, [], about, 1.0, where, command="kdnotes run this")
    text = page_tables.beside_the_paper(NUMBERS, tmp_path)
    table = text.split("## Table 1:")[0]
    # The paper: .918 - .729 = .189. Here: .91 - .72 = .19, the same for every seed but one.
    assert "| on colours | KL | .918 | .91 | .189 | .19 [.17, .21] | agrees |" in table
    assert "| on colours | CRD | .840 | .51 | .111 | -.21 [-.22, -.19] | disagrees |" in table
    assert "| on colours | Independent | .729 | .72 |  |  |  |" in table
    assert "| as they are | KL | .989 | not measured |" in table
    assert "`kdnotes run this`" in table
    assert "Not run here yet" in text.split("## Table 4:")[1]


def test_the_tables_name_declared_measures_and_chapters() -> None:
    for table in yaml.safe_load(NUMBERS.read_text(encoding="utf-8")):
        assert list((ROOT / "book").glob(f"[0-9][0-9]-{table['chapter']}.ipynb"))
        for row in table["rows"]:
            probes.check_measure(table["measure"], row["condition"])
            assert all(
                isinstance(row[arm], int | float) for arm in row.keys() - {"what", "condition"}
            )


def test_the_page_is_made_of_what_is_published() -> None:
    text = page_tables.beside_the_paper(NUMBERS, ROOT / "results")
    assert text.count("## ") == 4
    assert sum(line.startswith("| on colours | KL |") for line in text.splitlines()) == 2


def test_tables_have_a_rule_for_each_column() -> None:
    text = page_tables.beside_the_paper(NUMBERS, ROOT / "results")
    lines = text.splitlines()
    heads = [at for at, line in enumerate(lines) if line.startswith("| images | who |")]
    assert len(heads) == 4
    assert {lines[at].count("|") - lines[at + 1].count("|") for at in heads} == {0}


def test_networks_that_never_met_are_shown_with_their_intervals(tmp_path: Path) -> None:
    path = tmp_path / "strangers.csv"
    assert "not compared" in page_tables.strangers(path)
    path.write_text(
        "what,who,with,images,value,low,high,kappa,on\n"
        "shape bias,resnet50,,900,0.221,0.19,0.25,,cues\n"
        "shape bias,vgg16,,900,0.17,0.15,0.2,,cues\n"
        "shape bias,subject-01,,900,0.92,0.9,0.94,,cues\n"
        "shape bias,subject-02,,900,0.99,0.98,1,,cues\n"
        "same answer,resnet50,vgg16,1280,0.623,0.6,0.65,0.58,cues\n"
        "same answer,alexnet,vgg16,1280,0.5,0.48,0.52,0.4,cues\n"
        "same answer,lite0,lite1,1000,0.8,0.77,0.83,0.79,photographs\n"
    )
    lines = page_tables.strangers(path).splitlines()
    assert lines[2:5] == [
        "| 2 people | .92 to .99 |",
        "| vgg16 | .17 [.15, .20] |",
        "| resnet50 | .22 [.19, .25] |",
    ]
    assert lines[-2:] == [
        "| lite0 | lite1 | photographs | .80 [.77, .83] | .79 |",
        "| resnet50 | vgg16 | cues | .62 [.60, .65] | .58 |",
    ]
    assert not any("alexnet" in line for line in lines)
