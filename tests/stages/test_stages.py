import loralib
import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from stages.building import make_seg, make_vcl, trained_state
from torch.optim import AdamW

from uscl.backbone import load_trunk
from uscl.callbacks import AdapterExport
from uscl.data import Preprocessing, Volume
from uscl.data.evaluation_patches import place_patch
from uscl.errors import InputError
from uscl.evaluation.promptable import Evaluation
from uscl.prompting import PUBLISHED, REFINED, Click, Inference, SamMed3DSegmenter
from uscl.prompting.rollout import dice_ce
from uscl.tuning import LoRA, load_adapter
from uscl.vcl import SubVolumes

FAMILIES = {"vcl": (make_vcl, "volume"), "lora_seg": (make_seg, "label_box")}


@pytest.mark.parametrize("stage", FAMILIES)
def test_lora_b_moves_after_a_fit_with_the_sanity_check_on(stage, make_data, make_trainer):
    """Regression: loralib's default merges in eval(), Lightning restores the mode without train(), nothing trains."""
    make, centre = FAMILIES[stage]
    module = make()
    module.configure_model()
    before = trained_state(module)
    make_trainer(1, num_sanity_val_steps=2).fit(module, make_data(centre))
    after = trained_state(module)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    lora_b = {name for name in after if name.endswith("lora_B") and name.startswith("net.")}
    assert lora_b
    assert lora_b <= moved
    assert all(module.merged is False for module in module.modules() if isinstance(module, loralib.LoRALayer))
    frozen = {name for name in after if name.startswith("net.") and ".lora_" not in name}
    assert not frozen & moved, "the trunk must not move"


@pytest.mark.slow
@pytest.mark.parametrize("stage", FAMILIES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_cut_short_and_resumed_equals_an_uninterrupted_one(stage, accumulate, make_data, make_trainer, tmp_path):
    make, centre = FAMILIES[stage]
    states = {}
    for name, legs in {"whole": [3], "resumed": [1, 3]}.items():
        for number, epochs in enumerate(legs):
            seed_everything(3 + number, verbose=False)  # a new process would have another state
            module = make()
            checkpoint = ModelCheckpoint(tmp_path / name, "last", enable_version_counter=False)
            trainer = make_trainer(
                epochs, callbacks=[checkpoint], enable_checkpointing=True, accumulate_grad_batches=accumulate
            )
            start = str(tmp_path / name / "last.ckpt") if number else None
            trainer.fit(module, make_data(centre), ckpt_path=start)
        states[name] = trained_state(module)
    for name, value in states["whole"].items():
        assert torch.equal(value, states["resumed"][name]), name


def test_vcl_trains_encoder_lora_and_head_and_nothing_else():
    module = make_vcl()
    module.configure_model()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name and "image_encoder" in name for name in trained if "projector" not in name)
    assert any("projector" in name for name in trained)
    assert not any("mask_decoder" in name or "prompt_encoder" in name for name in trained)
    assert {f"student.{name}" for name in module.teacher.names} == {
        name.replace("net.image_encoder", "student.encoder") for name in trained
    }


def test_teacher_follows_once_per_optimiser_step_before_its_pass(make_data, make_trainer, monkeypatch):
    module = make_vcl()
    events = []
    compare = module.compare
    monkeypatch.setattr(module, "compare", lambda *given: (events.append("pass"), compare(*given))[1])
    module.configure_model()
    update = module.teacher.update
    monkeypatch.setattr(module.teacher, "update", lambda student: (events.append("update"), update(student))[1])
    make_trainer(1, num_sanity_val_steps=0, limit_val_batches=0, accumulate_grad_batches=2).fit(
        module, make_data("volume", patches_per_epoch=12)
    )
    # Six batches, three optimiser steps; the first pass has nothing to follow yet.
    assert events == ["pass", "pass", "update", "pass", "pass", "update", "pass", "pass"]


@pytest.mark.slow
def test_the_loss_of_vcl_falls_by_training_and_by_nothing_else(make_data, make_trainer):
    """Against the same fit at rate 0: region accuracy is above chance there already, by intensities alone."""

    def fit(rate: float) -> tuple[list[float], float]:
        torch.manual_seed(0)
        module = make_vcl(
            head_hidden_dim=64,
            head_out_dim=32,
            head_norm="batch",
            subvolumes=SubVolumes(crops=6),
            optimizer=lambda parameters: AdamW(parameters, lr=rate),
        )
        history = []
        module.on_train_epoch_end = lambda: history.append(module.trainer.callback_metrics["train/loss"].item())
        trainer = make_trainer(5, gradient_clip_val=1.0, num_sanity_val_steps=0)
        trainer.fit(module, make_data("volume", patches_per_epoch=8, batch_size=4))
        return history, trainer.callback_metrics["val/region_accuracy"].item()

    trained, _ = fit(1e-3)
    untrained, accuracy = fit(0.0)
    assert min(untrained) > 0.75 * untrained[0]
    assert trained[-1] < 0.7 * min(untrained)
    assert accuracy > 0.25, "so that accuracy says nothing of the training"


def test_stage_one_hands_over_to_stage_two(make_data, make_trainer, tmp_path):
    vcl = make_vcl()
    make_trainer(1, "vcl", callbacks=[AdapterExport()]).fit(vcl, make_data("volume"))
    file = tmp_path / "vcl" / "adapter.safetensors"
    adapter = load_adapter(file)
    assert adapter.stage == "vcl"
    assert any(name.startswith("vcl_head.projector") for name in adapter.tensors)
    seg = make_seg(vcl_adapter=str(file))
    seg.configure_model()
    for name, tensor in seg.net.state_dict().items():
        if ".lora_" in name and name.startswith("image_encoder"):
            assert torch.equal(tensor, adapter.tensors[name])
    assert seg.method == "USCL-Med3D"
    with pytest.raises(InputError, match="was trained with rank 4.* model.tuning has rank 8"):
        make_seg(vcl_adapter=str(file), tuning=LoRA(rank=8)).configure_model()
    decoder_only = make_seg(vcl_adapter=str(file), tuning=LoRA(rank=8, modules="decoder"))
    decoder_only.configure_model()
    assert decoder_only.described() == {"family": "LoRA", "modules": "decoder", "rank": 8, "vcl": True, "label": ""}
    assert seg.described() == {"family": "LoRA", "modules": "both", "rank": 4, "vcl": True, "label": ""}
    trained = {name for name, parameter in decoder_only.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith("net.mask_decoder") for name in trained)


def test_stage_two_leaves_an_adapter_that_tests_the_same(make_data, make_trainer, tmp_path):
    module = make_seg()
    trainer = make_trainer(1, callbacks=[AdapterExport()])
    trainer.fit(module, make_data())
    file = tmp_path / "run" / "adapter.safetensors"
    assert load_adapter(file).preprocessing["spacing"] == [3.0, 3.0, 3.0]
    again = make_seg(adapter=str(file), tuning=None)
    again.configure_model()
    assert again.method == "SAM-Med3D + LoRA"
    image = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        assert torch.equal(module.net.eval().encode_image(image), again.net.eval().encode_image(image))
    wrong = make_seg(vcl_adapter=str(file))
    with pytest.raises(InputError, match="is what stage 'lora_seg' left, expected stage 1's"):
        wrong.configure_model()


@pytest.mark.parametrize("stage", FAMILIES)
def test_a_training_does_not_go_on_with_another_trunk(stage, make_data, make_trainer, tmp_path):
    """The checkpoint would bring its own trunk, and the adapter would carry the name of the configured one."""
    make, centre = FAMILIES[stage]
    checkpoint = ModelCheckpoint(tmp_path / "first", "last", enable_version_counter=False)
    make_trainer(1, enable_checkpointing=True, callbacks=[checkpoint]).fit(make(), make_data(centre))
    other = load_trunk("tiny", None).model
    with torch.no_grad():
        other.image_encoder.pos_embed.add_(1)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"began on a trunk with random weights, model\.weights now gives other"):
        make_trainer(2, "second").fit(
            make(weights=str(tmp_path / "other.safetensors")),
            make_data(centre),
            ckpt_path=str(tmp_path / "first" / "last.ckpt"),
        )


def test_what_was_never_tuned_is_not_tested_under_a_tuned_name(make_data, make_trainer):
    with pytest.raises(InputError, match=r"nothing tuned is given to test: add --model\.adapter"):
        make_trainer(1).test(make_seg(), make_data())
    module = make_seg(evaluation=Evaluation(method="mine"), tuning=None)
    module.configure_model()
    assert module.method == "mine"
    assert module.described() == {"family": "mine"}


def test_stage_one_alone_is_tested_where_it_is_named(make_data, make_trainer, tmp_path):
    make_trainer(1, "vcl", callbacks=[AdapterExport()]).fit(make_vcl(), make_data("volume"))
    file = str(tmp_path / "vcl" / "adapter.safetensors")
    with pytest.raises(InputError, match=r"model\.vcl_adapter alone has nothing of stage 2"):
        make_trainer(1).test(make_seg(vcl_adapter=file), make_data())
    module = make_seg(vcl_adapter=file, evaluation=Evaluation((1,), method="stage 1 alone"))
    make_trainer(1).test(module, make_data())
    assert {row.method for row in module.rows} == {"stage 1 alone"}
    assert module.described()["label"] == "stage 1 alone"


def test_a_given_name_stays_after_vcl(make_data, make_trainer, tmp_path):
    make_trainer(1, "vcl", callbacks=[AdapterExport()]).fit(make_vcl(), make_data("volume"))
    vcl_adapter = str(tmp_path / "vcl" / "adapter.safetensors")
    module = make_seg(vcl_adapter=vcl_adapter, evaluation=Evaluation(method="mine"))
    module.configure_model()
    assert module.method == "mine"


@torch.no_grad()
def test_predictions_are_averaged_over_shifts_and_filtered_and_begin_with_two_looks():
    refined = Inference(shifts=2, guided_filter=True, first_twice=True)
    module = make_seg(tuning=None, inference=refined)
    module.configure_model()
    array = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    preprocessing = Preprocessing(spacing=(1.0, 1.0, 1.0), patch_size=64)
    batch = place_patch(Volume(array), [((20, 30, 40), True)], preprocessing)
    segmenter = SamMed3DSegmenter(module.net, refined)
    segmenter.set_image(batch.image)
    wanted = segmenter.segment([Click(index, True) for index, _ in batch.points])
    assert np.array_equal(module.predict_step(batch, 0).mask, batch.grid.restore(wanted.numpy(), batch.corner))


def test_tests_are_published_and_predictions_refined_where_that_was_measured(caplog):
    small, embedded = make_seg(tuning=None), make_seg(tuning=None, backbone="mini_fine")
    for module in (small, embedded):
        module.configure_model()
        assert module.inference_of("test") == module.inference_of("validate") == PUBLISHED
    assert small.inference_of("predict") == PUBLISHED
    assert embedded.inference_of("predict") == REFINED
    embedded.inference = "published"
    assert embedded.inference_of("predict") == PUBLISHED
    small.inference = "refined"
    assert small.inference_of("test").in_words == "4 shifts, guided filter"
    assert small.inference_of("validate") == PUBLISHED


def test_an_inference_that_is_none_is_refused():
    with pytest.raises(InputError, match="inference is 'refind'; expected published, refined"):
        make_seg(inference="refind")


def test_training_can_go_on_from_an_adapter(make_data, make_trainer, tmp_path):
    make_trainer(1, callbacks=[AdapterExport()]).fit(make_seg(), make_data())
    file = tmp_path / "run" / "adapter.safetensors"
    started = load_adapter(file).tensors
    module = make_seg(adapter=str(file))
    make_trainer(1, "more", callbacks=[AdapterExport()]).fit(module, make_data())
    ended = load_adapter(tmp_path / "more" / "adapter.safetensors").tensors
    assert set(started) == set(ended)
    assert all(not torch.equal(started[name], ended[name]) for name in started)


@pytest.mark.slow
def test_overfitting_one_patch_lowers_the_loss(make_data, make_trainer):
    """With everything trainable the loss on one patch has to fall; with a broken loop or loss it would not."""
    module = make_seg()
    data = make_data(patches_per_epoch=2)
    losses = []
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.configure_model()
    module.net.requires_grad_(True)
    built = AdamW(module.parameters(), lr=1e-3)
    from uscl.prompting import training_rollout
    from uscl.seeds import seeded_draw

    for step in range(25):
        loss, _ = training_rollout(
            module.net, batch.image, batch.target, dice_ce(), module.clicks, seeded_draw("overfit", step)
        )
        built.zero_grad()
        loss.backward()
        built.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_loss_equals_the_original(load_parity):
    arrays = load_parity("sam_med3d/preproc_loss.npz")
    found = dice_ce()(arrays["loss/logits"], arrays["loss/gt"])
    assert found.item() == pytest.approx(arrays["loss/value"].item(), abs=1e-6)


def test_settings_that_cannot_work():
    with pytest.raises(InputError, match=r"lora\.modules is 'both'"):
        make_vcl(lora=LoRA(rank=4))
    with pytest.raises(InputError, match="not both"):
        make_seg(adapter="a", vcl_adapter="b")
    with pytest.raises(InputError, match="takes numbers from 1 on"):
        Evaluation(clicks=(0, 3))
    module = make_seg(tuning=None)
    module.configure_model()
    with pytest.raises(InputError, match="nothing is trainable"):
        module.configure_optimizers()


def test_patches_of_another_size_are_refused(study, make_trainer):
    from uscl.data import Preprocessing, VolumeDataModule

    data = VolumeDataModule(str(study), Preprocessing(patch_size=128), classes=["liver"], batch_size=1)
    with pytest.raises(InputError, match="patch_size is 128, but the backbone takes 64"):
        make_trainer(1, num_sanity_val_steps=0).fit(make_seg(), data)


def test_another_preprocessing_than_in_training_is_reported(make_data, make_trainer, tmp_path, study, caplog):
    from uscl.data import Preprocessing, VolumeDataModule

    make_trainer(1, callbacks=[AdapterExport()]).fit(make_seg(), make_data())
    data = VolumeDataModule(str(study), Preprocessing(spacing=(4.0, 4.0, 4.0), patch_size=64), classes=["liver"])
    module = make_seg(adapter=str(tmp_path / "run" / "adapter.safetensors"))
    make_trainer(1).test(module, data, verbose=False)
    assert "spacing was [3.0, 3.0, 3.0] and is (4.0, 4.0, 4.0)" in caplog.text


def test_random_weights_are_announced(caplog):
    make_seg().configure_model()
    assert "RANDOM WEIGHTS" in caplog.text
