"""Tables 3, 4 and 5 from run folders that were written here, so that every figure is known beforehand."""

import csv
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from evaluation.report_runs import folders_on, rewrite, table, write_comparator, write_run

from uscl.cli import main
from uscl.errors import InputError
from uscl.evaluation import paper
from uscl.evaluation.ablation import look_at
from uscl.evaluation.charts import draw_curves
from uscl.evaluation.rows import read_rows, write_rows
from uscl.evaluation.runs import find_runs
from uscl.prompting import PUBLISHED, REFINED, ClickProtocol


def test_figures_of_the_tables(study, tmp_path, capsys):
    out = tmp_path / "report"
    assert main(["report", str(study), "--out", str(out)]) == 0
    # 0.025 is the mean over the patients, 0.001 that over the seeds.
    third = table(out / "table3.csv")
    cell = third["encoder and decoder", "with VCL"]
    assert float(cell["here"]) == pytest.approx(100 * (0.8 + 0.026), abs=1e-3)
    assert (cell["objects"], cell["patients"], cell["seeds"], cell["paper"]) == ("12", "6", "3", "69.67")
    assert float(cell["low"]) < float(cell["here"]) < float(cell["high"])
    gain = third["encoder and decoder", "difference"]
    assert float(gain["here"]) == pytest.approx(10, abs=1e-3)
    # Paired: what patients have in common is no part of the interval.
    assert [float(gain["low"]), float(gain["high"])] == pytest.approx([10, 10], abs=0.02)
    assert float(gain["paper"]) == pytest.approx(3.16)
    fourth = table(out / "table4.csv")
    assert float(fourth["baseline, untouched", "AMOS22"]["here"]) == pytest.approx(72.5, abs=1e-3)
    assert fourth["baseline, untouched", "AMOS22"]["paper"] == "74.2"
    full = fourth["full tuning (encoder and decoder)", "sweeps"]
    assert (float(full["here"]), full["paper"]) == (pytest.approx(92.6, abs=1e-3), "88.63")
    assert fourth["AdaptFormer", "sweeps"]["here"] == ""
    fifth = table(out / "table5.csv")
    assert float(fifth["8", "encoder and decoder"]["here"]) == pytest.approx(42.5, abs=1e-3)
    assert fifth["8", "encoder and decoder"]["seeds"] == "1"
    assert fifth["16", "image encoder"]["here"] == ""
    text = (out / "report.md").read_text()
    assert "not run" in text
    assert "sweeps: 12 objects of 6 patients" in text
    assert "Report on" in text
    assert "Table 3" in capsys.readouterr().out


def test_methods_by_class_and_by_data_set(study, tmp_path):
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "1,2"]) == 0
    with (tmp_path / "r/table1.csv").open() as stream:
        rows = {(row["row"], row["column"]): row for row in csv.DictReader(stream)}
    ours = rows["USCL-Med3D / 10", "liver"]
    assert (float(ours["here"]), ours["paper"]) == (pytest.approx(82.6, abs=1e-3), "74.2")
    assert (ours["objects"], ours["seeds"]) == ("6", "3")
    assert float(rows["USCL-Med3D / 1", "mean over classes"]["here"]) == pytest.approx(62.6, abs=1e-3)
    assert float(rows["USCL-Med3D / 10", "mean over classes"]["paper"]) == pytest.approx(69.672)
    assert float(rows["SAM-Med3D / 10", "spleen"]["here"]) == pytest.approx(32.5, abs=1e-3)
    assert rows["SAM-Med3D / 10", "kidney"]["here"] == "", "no kidney in this study"
    assert rows["FastSAM3D / 3", "kidney"]["here"] == ""
    assert rows["FastSAM3D / 3", "kidney"]["paper"] == "16.53"
    with (tmp_path / "r/table2.csv").open() as stream:
        rows = {(row["row"], row["column"]): row for row in csv.DictReader(stream)}
    assert float(rows["SAM-Med3D / 10", "AMOS22"]["here"]) == pytest.approx(72.5, abs=1e-3)
    assert rows["TinySAM / 5", "BraTS"]["paper"] == "18.7"
    assert rows["full tuning (encoder and decoder) / 10", "BraTS"]["paper"] == ""
    picture = plt.imread(tmp_path / "r/dice_by_clicks.png")
    assert picture.shape[1] > 3 * picture.shape[0], "a panel for each of three data sets"
    assert not (tmp_path / "r/claims.csv").exists()
    # Again into the same folder: a report is replaced.
    assert main(["report", str(study), "--out", str(tmp_path / "r")]) == 0


def test_comparators_stand_in_the_lines_of_the_paper(study, tmp_path, caplog):
    write_comparator(study / "sam", "SAM", "BraTS")
    write_comparator(study / "mobile", "MobileSAM", "BraTS", "weights not found: hf://a/b/c.pt")
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "2"]) == 0
    text = (tmp_path / "r/report.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| SAM | 10 |"))
    assert "200 points, 12 missed" in line, "its masks were empty"
    assert "95.0 [95.0, 95.0], 200 points" in line, "the points in the volume stand beside a 2D method's figure"
    assert "not run | 14.5" in line, "it was not run on AMOS"
    line = next(line for line in text.splitlines() if line.startswith("| MobileSAM | 3 |"))
    assert line.count("weights not found: hf://a/b/c.pt") == 1
    assert line.count("weights not found") == 3, "TotalSegmentator, which nothing was tested on, has its column too"
    assert "weights not found: hf://a/b/c.pt" in (tmp_path / "r/report.html").read_text()
    assert "other weights" not in caplog.text, "a comparator's weights are its own"
    # Ours, 0.6 against 0.6 and seeds that add 0.001 each, in pairs with the one test of the untouched backbone.
    assert "| SAM-Med3D | BraTS | +0.1 [-0.1, +0.3] | 0.031 | 12 | 6 | 3 |" in text
    # Which click reaches a goal first: 0.59 at one, 0.95 at ten; our worst objects with what went wrong.
    assert "| SAM | BraTS | 10.0 | 0 of 12 | 10.0 | 0 of 12 |" in text
    reach = text[text.index("## Clicks to reach") :]
    untouched = next(line for line in reach.splitlines() if line.startswith("| SAM-Med3D | BraTS |"))
    assert "| 12 of 12 |" in untouched
    worst = text[text.index("worst of") :]
    assert "LoRA (encoder and decoder, rank 32, with VCL)" in worst
    assert "| case0 | liver | BraTS | 60.1 | 3.0 mm | +10 % |" in worst
    pictures = {path.name for path in (tmp_path / "r").glob("*.png")}
    assert pictures == {"dice_by_clicks.png", "dice_by_class.png"}


def test_weights_that_were_not_found_have_a_line_in_both_tables(study, tmp_path):
    write_comparator(study / "mobile", "MobileSAM", "sweeps", "weights not found: hf://a/b/c.pt")
    untouched = study / "absent"
    write_run(untouched, None, {}, status="weights not found: mini.pth")
    for folder in (study / "untouched").iterdir():
        (folder / "run.json").write_text(json.dumps({"status": "running"}))
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "1,2"]) == 0
    text = (tmp_path / "r/report.md").read_text()
    first, second = text.split("## Table 2")
    for part, columns in ((first, 6), (second, 3)):
        for name, reference in (("MobileSAM", "hf://a/b/c.pt"), ("SAM-Med3D", "mini.pth")):
            for clicks in paper.POINTS:
                line = next(line for line in part.splitlines() if line.startswith(f"| {name} | {clicks} |"))
                assert line.count("weights not found") == columns
                assert line.count(f"weights not found: {reference}") == 1


def test_the_protocol_is_shown_and_never_mixed(study, tmp_path):
    tests = folders_on(study, "BraTS")
    words = ClickProtocol(best_so_far=True).in_words
    for test in tests:
        rewrite(test, protocol=f"patches around the first click, {words}")
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "1,2"]) == 0
    first, second = (tmp_path / "r/report.md").read_text().split("## Table 2")
    assert "Patches around the first click, " in second
    assert "the BEST mask so far scored, inference published (BraTS)" in second
    assert "BEST" not in first, "the tests on sweeps followed another"
    assert "liver 6 (6), spleen 6 (6), mean over classes 12 (6)" in first
    rewrite(tests[-1], protocol="patches around the first click, clicks drawn from all wrong voxels")
    with pytest.raises(InputError, match="figures must not be compared"):
        find_runs([study])


def test_inference_is_shown_and_never_mixed(study, tmp_path):
    tests = folders_on(study, "BraTS")
    for test in tests:
        rewrite(test, inference=REFINED.in_words)
    write_comparator(study / "sam", "SAM", "BraTS")
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "2"]) == 0
    assert "inference 4 shifts, guided filter, first click twice (BraTS)" in (tmp_path / "r/report.md").read_text()
    rewrite(tests[-1], inference=PUBLISHED.in_words)
    with pytest.raises(InputError, match="figures must not be compared"):
        find_runs([study])


def test_methods_and_data_sets_that_the_paper_does_not_have_are_in_every_table(study, tmp_path):
    """Each with its own label, family and rank; nothing is left out without a word."""
    for seed, rank in ((0, 4), (0, 8)):
        run = write_run(study / f"dora{rank}", "DoRA", {"sweeps": 0.5, "BraTS": 0.4, "clinic": 0.3}, seed, rank=rank)
        record = json.loads((run / "run.json").read_text())
        record["setting"] |= {"rank": rank, "label": "SAM-Med3D + DoRA"}
        (run / "run.json").write_text(json.dumps(record))
    write_comparator(study / "own", "nnInteractive", "clinic")
    assert main(["report", str(study), "--out", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r/report.md").read_text()
    tables = {part.split("\n")[0]: part for part in text.split("## ")[1:]}
    for title, part in tables.items():
        if title.startswith(("Table 1", "Table 2", "Table 3", "Table 4", "Cost")):
            assert "SAM-Med3D + DoRA (encoder and decoder, rank 4)" in part, title
            assert "SAM-Med3D + DoRA (encoder and decoder, rank 8)" in part, title
    fifth = next(part for title, part in tables.items() if title.startswith("Table 5"))
    assert "| 4, SAM-Med3D + DoRA |" in fifth
    second = next(part for title, part in tables.items() if title.startswith("Table 2"))
    assert second.startswith("Table 2: other data sets")
    assert "| nnInteractive | 10 |" in second
    assert "| clinic: here |" in second


def test_lora_alone_is_not_called_by_the_name_of_the_method(tmp_path):
    write_run(tmp_path / "study" / "1", "LoRA", {"sweeps": 0.5})
    assert main(["report", str(tmp_path / "study"), "--out", str(tmp_path / "r"), "--tables", "1"]) == 0
    cells = table(tmp_path / "r/table1.csv")
    assert cells["USCL-Med3D / 10", "liver"]["here"] == ""
    alone = cells["LoRA (encoder and decoder, rank 32, without VCL) / 10", "liver"]
    assert (float(alone["here"]), alone["paper"]) == (pytest.approx(52.5), "")


def test_a_report_leaves_nothing_of_the_one_before(study, tmp_path):
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "1,3"]) == 0
    assert (tmp_path / "r/table3.csv").exists()
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "1"]) == 0
    assert not (tmp_path / "r/table3.csv").exists()
    assert not (tmp_path / "r/claims.tex").exists()


def test_clicks_that_one_data_set_was_not_scored_at(study, tmp_path):
    write_comparator(study / "sam", "SAM", "BraTS")
    file = study / "sam" / "rows.csv"
    write_rows(file, [*read_rows(file), *(replace(row, clicks=7) for row in read_rows(file) if row.clicks == 10)])
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--clicks", "7"]) == 0
    assert "sweeps: " not in (tmp_path / "r/report.md").read_text().split("## Table 3")[1].split("##")[0]
    assert not (tmp_path / "r/dice_by_class.png").exists()
    # Who was scored at more numbers of clicks must not seem to need fewer.
    assert "| SAM | BraTS | 10.0 | 0 of 12 | 10.0 | 0 of 12 |" in (tmp_path / "r/report.md").read_text()


def test_every_method_is_named_beside_the_curves(study, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    named: list[str] = []
    monkeypatch.setattr(Axes, "legend", lambda self, lines, names, **options: named.extend(names))
    write_comparator(study / "sam", "SAM", "BraTS")
    draw_curves(look_at(find_runs([study])), tmp_path / "curves.png")
    assert named == ["SAM", "SAM-Med3D", "USCL-Med3D", "full tuning (encoder and decoder)"]


def test_the_page_is_well_formed_and_holds_everything(study, tmp_path):
    from html.parser import HTMLParser

    assert main(["report", str(study), "--out", str(tmp_path / "r")]) == 0
    text = (tmp_path / "r/report.html").read_text()
    opened, cells, widths = [], [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                opened.append(tag)
            if tag == "tr":
                cells.append(0)
            if tag in ("td", "th"):
                cells[-1] += int(dict(attributes).get("colspan", 1))
            assert not {name for name, value in attributes if name in ("src", "href") and not value.startswith("data:")}

        def handle_endtag(self, tag):
            assert opened.pop() == tag
            if tag == "table":
                widths.append(set(cells))
                cells.clear()

    Reader().feed(text)
    assert not opened
    assert len(widths) == 10
    assert all(len(width) == 1 for width in widths), "as many cells in every line of a table"
    assert "holds here" in text
    assert "not a medical device" in text


def test_figures_of_the_paper_agree_with_each_other():
    """Where its tables tell the same thing twice."""
    for method, name in (("SAM-Med3D", "Baseline"), ("USCL-Med3D", "LoRA")):
        at_ten = [figures[-1] for figures in paper.BY_CLASS[method].values()]
        assert sum(at_ten) / 5 == pytest.approx(paper.METHODS[name]["ultrasound"], abs=0.01)
        for key, figures in paper.BY_DATA_SET[method].items():
            assert figures[-1] == paper.METHODS[name][key]
    for modules in ("encoder", "decoder", "both"):
        assert paper.MODULES[modules, True] == paper.RANKS[32, modules]
    assert all(
        len(figures) == 4
        for table in (paper.BY_CLASS, paper.BY_DATA_SET)
        for method in table.values()
        for figures in method.values()
    )


def test_verdicts(study, tmp_path):
    assert main(["report", str(study), "--out", str(tmp_path / "report")]) == 0
    found = {
        row: cell["text"]
        for (row, column), cell in table(tmp_path / "report/claims.csv").items()
        if column == "verdict"
    }
    assert found["VCL helps (with - without)"] == "holds here"
    assert found["tuning both beats the encoder alone"] == "holds here"
    assert found["rank 32 beats rank 8"] == "no verdict from 1 training"
    assert found["rank 32 beats rank 16"] == "not run"
    assert found["rank 32 beats rank 64"] == "does not hold here"
    assert found["full tuning gains more than LoRA"] == "holds here"
    assert found["LoRA gains over the baseline"] == "holds here"
    assert found["on CT and MR LoRA keeps what full tuning forgets"] == "holds here"
    assert found["LoRA beats AdaptFormer"] == "not run"
    assert found["full tuning takes 7.1 times LoRA's memory"] == "more than LoRA's, less than claimed"
    assert found["full tuning takes 14.1 times LoRA's time per step"] == "does not hold here"


def test_memory_of_a_cpu_and_single_steps_have_no_verdict(study, tmp_path):
    for file in study.rglob("cost.json"):
        cost = json.loads(file.read_text()) | {"peak_device_bytes": None, "device": "cpu", "seconds_per_step": None}
        file.write_text(json.dumps(cost))
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "4"]) == 0
    found = {
        row: cell["text"] for (row, column), cell in table(tmp_path / "r/claims.csv").items() if column == "verdict"
    }
    for what in ("7.1 times LoRA's memory", "14.1 times LoRA's time per step"):
        assert found[f"full tuning takes {what}"].startswith("no verdict")
    assert "not measured" in (tmp_path / "r/cost.csv").read_text()


def test_latex_is_escaped_and_every_line_has_as_many_cells(study, tmp_path):
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--tables", "4"]) == 0
    lines = (tmp_path / "r/table4.tex").read_text().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(body) == 5
    assert {line.count(" & ") for line in body} == {6}
    assert any(r"\%" in line for line in lines)
    assert not (tmp_path / "r/table3.tex").exists()


def test_at_another_number_of_clicks(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--clicks", "1"]) == 0
    cell = table(tmp_path / "r/table3.csv")["encoder and decoder", "with VCL"]
    assert float(cell["here"]) == pytest.approx(62.6, abs=1e-3)
    assert main(["report", str(study), "--out", str(tmp_path / "r"), "--clicks", "7"]) == 2
    assert "nothing was scored at 7 clicks; there are [1, 10]" in capsys.readouterr().err


def test_folders_that_are_no_reports_are_left_alone(study, tmp_path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.md").write_text("years of work")
    assert main(["report", str(study), "--out", str(tmp_path / "r")]) == 2
    assert "something else than a report" in capsys.readouterr().err
    assert main(["report", str(study), "--out", str(tmp_path / "q"), "--tables", "3,9"]) == 2
    assert "there is no table '9'" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "q")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "q")]) == 2
    assert "no finished run with rows" in capsys.readouterr().err
