"""What a user can get wrong is said before Ray starts and before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_models import write_dit
from tiny_pipelines import link_out, put_in_index, write_sd, write_sdxl

from redif_ray.config import load
from redif_ray.errors import UserError
from redif_ray.evaluation.judge_source import JUDGES, REFERENCE
from redif_ray.job.distill import distill

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.model=nowhere", "no model 'nowhere'"),
        ("student.schedule=karas", "schedule 'karas' is unknown; expected one of uniform_trailing"),
        ("teacher.schedule=linear", "schedule 'linear' is unknown"),
        ("student.levels=[999, 998]", None),
        ("student.levels=[10, 500]", "expected a strict rise"),
        ("student.lora={rank: 2, targets: [to_out]}", "targets='to_out' matches a ModuleList, .*such as to_out.0"),
        ("student.lora={rank: 2, targets: [norm1]}", "targets='norm1' matches a AdaLayerNormZero, to which no adapter"),
        ("student.lora={rank: 2, targets: [to_x]}", "student.lora.targets=\\['to_x'\\] match no layer"),
        ("conditions.classes=[10]", "conditions.classes: \\[10\\] are not classes of the .*in 0..9"),
        ("reward.terms={mes: {}}", "unknown reward term 'mes' \\(did you mean 'mse'"),
        ("reward.terms={mse: {options: {sigma: 1}}}", "mse has no option 'sigma'"),
        ("evaluation.judge=me", "no judge 'me'"),
        ("evaluation.judge=random-features", None),
        ("evaluation={judge: random-features, held_out: 11}", "held_out=11: judge random-features .*at least 12"),
        ("evaluation={judge: random-features, held_out: 12}", None),
        ("evaluation.held_out=6", None),
        ("evaluation.held_out=10001", "has 10000 reference images; expected at most as many"),
    ],
)
def test_what_is_wrong_is_said_first(override: str, message: str | None, tmp_path: Path) -> None:
    from redif_ray.job.preflight import preflight

    config = load("smoke", [f"run.root={tmp_path}/runs", "tracking.uri=off", override])
    if message is None:
        preflight(config)
        return
    with pytest.raises(UserError, match=message):
        distill(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides", [["method=sfd", "warm_start.rounds=0"], ["learner.rounds=0", "warm_start.rounds=0"]], ids=" ".join
)
def test_a_run_without_rounds_is_refused(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"warm_start\.rounds=0 and learner\.rounds=\d leave no round to train"):
        distill(load("smoke", [f"run.root={tmp_path}/runs", "tracking.uri=off", *overrides]))
    assert not (tmp_path / "runs").exists()


def test_a_judge_of_other_images_is_named_with_what_to_use(tmp_path: Path) -> None:
    config = load("smoke", [f"run.root={tmp_path}", f"teacher.model={write_dit(tmp_path / 'small')}"])
    with pytest.raises(UserError, match=r"takes images of \(1, 28, 28\), the teacher makes \(1, 8, 8\); .*random-feat"):
        distill(config)


def test_a_student_that_diffusers_could_not_sample(tmp_path: Path) -> None:
    teacher = write_sdxl(tmp_path / "teacher", clip_sample=True)
    judge = "evaluation.judge=random-features"
    config = load("smoke", [f"run.root={tmp_path}/runs", f"teacher.model={teacher}", judge])
    with pytest.raises(UserError, match="clip_sample=true, and diffusers' Euler scheduler does not clip"):
        distill(config)
    teacher = write_sd(tmp_path / "other")
    config = load("smoke", [f"run.root={tmp_path}/runs", f"teacher.model={teacher}", judge, "student.guidance=0.5"])
    with pytest.raises(UserError, match=r"student.guidance=0.5: diffusers' pipelines guide above 1 only"):
        distill(config)
    assert not (tmp_path / "runs").exists()


def test_what_an_export_would_not_copy(tmp_path: Path) -> None:
    """A part that leads out of the teacher's folder, a link that does, and a licence that could not be read."""
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    listed = {"../outside": ["diffusers", "AutoencoderKL"]}
    for name, spoil, message in (
        ("a", lambda folder: put_in_index(folder, **listed), "lists the part '../outside', which is no name of a fol"),
        ("b", lambda folder: link_out(folder, "vae"), r"b/vae is a link to .*outside of .*put a copy"),
        ("c", lambda folder: link_out(folder, "vae/config.json"), r"c/vae/config.json is a link to .*outside of "),
        (
            "e",
            lambda folder: put_in_index(folder, safety_checker=checker),
            r"has no folder safety_checker, which its mod",
        ),
        ("d", lambda folder: (folder / "README.md").write_text("---\nlicense: [\n---\n"), r"README\.md: its front mat"),
    ):
        teacher = write_sd(tmp_path / name / name)
        spoil(teacher)
        judge = "evaluation.judge=random-features"
        with pytest.raises(UserError, match=message):
            distill(load("smoke", [f"run.root={tmp_path}/runs", f"teacher.model={teacher}", judge]))
    assert not (tmp_path / "runs").exists()


def test_draft_needs_gradients(tmp_path: Path) -> None:
    config = load("smoke", [f"run.root={tmp_path}", "method=draft", "reward.terms={jpeg_compressibility: {}, mse: {}}"])
    with pytest.raises(UserError, match=r"method=draft needs differentiable rewards; .*jpeg_compressibility"):
        distill(config)


def test_a_judge_of_few_reference_images(tmp_path: Path) -> None:
    classifier, reference = JUDGES["fashion-mnist"]
    judge = shutil.copytree(classifier, tmp_path / "judge")
    pq.write_table(pq.read_table(reference)[:11], judge / REFERENCE)
    options = [f"run.root={tmp_path}", f"evaluation={{judge: {judge}, held_out: 11}}", "validation.groups=8"]
    with pytest.raises(UserError, match=r"it has 11 reference images, of which each half must hold 6; .*at least 12"):
        distill(load("smoke", options))


def test_few_held_out_captions_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from redif_ray.job.preflight import preflight

    teacher = write_sd(tmp_path / "teacher")
    fixed = [f"run.root={tmp_path}", f"teacher.model={teacher}", "evaluation.judge=random-features"]
    preflight(load("smoke", [*fixed, "evaluation.held_out=130"]))
    assert "share 13 held-out captions" not in caplog.text
    preflight(load("smoke", [*fixed, "evaluation.held_out=1000"]))
    assert "held_out=1000 noises share 13 held-out captions, 76 noises a caption" in caplog.text
    assert "conditions.source (now the shipped list)" in caplog.text


def test_captions_whose_end_is_not_seen_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from redif_ray.job.preflight import preflight

    captions = tmp_path / "captions.txt"
    captions.write_text("cat\ndog and\na dog and a cat\n")  # 3, 6, 10 characters, a token each; the teacher takes 6
    teacher = write_sd(tmp_path / "teacher")
    preflight(
        load(
            "smoke",
            [
                f"run.root={tmp_path}/runs",
                f"teacher.model={teacher}",
                "evaluation={judge: random-features, held_out: 12}",
                f"conditions={{source: {captions}, held_out: 0}}",
            ],
        )
    )
    assert "1 of 3 captions have more tokens" in caplog.text
    assert caplog.text.rstrip().endswith("the first: a dog and a cat")
