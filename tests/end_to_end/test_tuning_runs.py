"""Every tuning method and every data set from the command line."""

import pytest
import yaml
from end_to_end.running import EXPERIMENTS, ONE_OBJECT, SMALL_STEPS, TINY, scored, trained, uscl

from uscl.evaluation import read_rows


@pytest.mark.parametrize(
    ("choice", "title"),
    [
        ("--model.tuning AdaptFormer --model.tuning.width 8", "SAM-Med3D + AdaptFormer"),
        ("--model.tuning FullTuning", "SAM-Med3D, fully tuned"),
        ('--model.tuning.projections "[q, k, v, out]" --model.tuning.decoder_rank 2', "SAM-Med3D + LoRA"),
    ],
    ids=["adaptformer", "full", "lora"],
)
def test_every_tuning_method_from_the_command_line(choice, title, study, tmp_path):
    assert uscl(f"{trained(study, tmp_path).replace('--model.tuning.rank 4', '')} {choice}") == 0
    assert uscl(f"{scored(study, tmp_path)} --model.adapter {tmp_path / 'lora/adapter.safetensors'} {ONE_OBJECT}") == 0
    assert {row.method for row in read_rows(tmp_path / "eval_us/rows.csv")} == {title}


@pytest.mark.parametrize("dataset", ["amos", "totalsegmentator", "brats", "ultrasound"])
def test_fine_tuning_on_every_data_set(dataset, scans, study, tmp_path):
    """What data/README.md says of a download: the experiment of the embedded data, another data set and root."""
    root = study if dataset == "ultrasound" else scans[dataset]
    one = {"brats": "whole tumour"}.get(dataset, "liver")
    line = f"""
        fit --config {EXPERIMENTS / "lora.yaml"} --config {EXPERIMENTS / "data" / dataset}.yaml --data.root {root}
        {TINY} {SMALL_STEPS}
        --data.classes "[{one}]" --data.patches_per_epoch 2 --data.sampling.minimum_foreground 20
        --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 2 --trainer.default_root_dir {tmp_path}
    """
    assert uscl(line) == 0
    assert (tmp_path / "adapter.safetensors").is_file()
    assert (tmp_path / "checkpoints/last.ckpt").is_file(), "an epoch without validation is lost when a run is cut short"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]
    assert config["class_path"].endswith("VolumeDataModule")
    assert config["init_args"]["dataset"] == dataset
