"""Which networks the casts ask for, and the teachers that are made of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from asked import NOTEBOOKS, by_arm, main_plan, study_of
from PIL import Image
from torch.nn import functional as F

from kdnotes import networks
from kdnotes.data import DataSpec, ImageData, load
from kdnotes.data.sources import scenes
from kdnotes.data.views import Crops, crop
from kdnotes.errors import RequestError
from kdnotes.methods.crd import CRD
from kdnotes.probes import domain_accuracy
from kdnotes.study import Study
from kdnotes.training import cache
from kdnotes.training.specification import NetworkSpec


def of(chapter: str, **values: object) -> Study:
    return study_of(chapter, **({"preset": "smoke"} | values))


def arms(chapter: str, plan: str = "", **values: object) -> dict[str, NetworkSpec]:
    """The first network of each arm of a plan, the chapter's first unless one is named."""
    study = of(chapter, **values)
    return by_arm((study.plans[plan] if plan else main_plan(study)).planned)


@pytest.mark.parametrize("chapter", NOTEBOOKS)
def test_students_of_one_seed_are_paired_and_teachers_apart(chapter: str) -> None:
    for plan in of(chapter).plans.values():
        planned = plan.planned
        assert len({(item.arm, item.spec.seed) for item in planned}) == len(planned)
        assert sum(item.arm == "teacher" for item in planned) == 1
        by_seed: dict[tuple[str, int], set[int]] = {}
        for item in planned:
            if item.spec.role == "student" and not item.arm.endswith("same-start"):
                name = (item.spec.model, item.spec.seed)
                by_seed.setdefault(name, set()).add(item.spec.initialisation_seed)
        assert all(len(starts) == 1 for starts in by_seed.values())
        starts = {item.spec.initialisation_seed for item in planned if item.spec.role == "teacher"}
        assert starts.isdisjoint(set().union(*by_seed.values()))


def test_a_student_that_is_not_declared_is_the_first_of_its_arm() -> None:
    study = of("distillation")
    plan = main_plan(study)
    before, declared = len(plan.planned), by_arm(plan.planned)
    asked = plan.student(plan.method("kl"), of=declared["teacher"])
    assert asked == declared["kl"]
    assert plan.student(plan.method("kl"), declared["teacher"], epochs=1).recipe.epochs == 1
    assert len(plan.planned) == before


def test_casts_that_differ_in_students_alone_share_a_teacher() -> None:
    teacher = arms("localization")["teacher"]
    for chapter, plan in (
        ("shape-and-cue-bias", "cues"),
        ("dose", "dose"),
        ("architectures", "cnn-cnn"),
        ("architectures", "cnn-vit"),
    ):
        assert arms(chapter, plan)["teacher"] == teacher
    plain = arms("crop-and-shift-invariance", "crops")["plain-teacher"]
    exact = arms("crop-and-shift-invariance", "exact-flips")["teacher"]
    assert exact.parts == (plain,)
    assert exact.mirrored


def test_doses_are_what_their_names_say() -> None:
    found = {arm: spec.method for arm, spec in arms("dose").items()}
    for weight in (0.1, 0.5):
        method = found[f"kl-weight-{weight}"]
        assert (method.name, method.weight, method.gamma) == ("kl", weight, 1 - weight)
    assert found["kl-tau-16"].tau == 16
    assert found["mixture-0.25"] == found["kl"]
    mixed = arms("dose")["mixture-0.25"].teacher
    assert mixed.shares == (0.75, 0.25)
    assert [part.data.options for part in mixed.parts] == [
        {"marker": True, "marker_contrast": 0.5, "marker_agreement": 0.0},
        {"marker": True, "marker_contrast": 0.5, "shape_agreement": 0.0},
    ]


def test_digits_are_taught_as_the_study_did() -> None:
    domains = {arm: spec.method for arm, spec in arms("domain-adaptation").items()}
    assert (domains["hint"].layers(), domains["hint"].weight) == (("3/3", "3/3"), 2.0)
    assert domains["kl"].tau == 8
    assert domains["crd"] == CRD(weight=0.1, contrast_temperature=0.1, negatives=32)
    assert arms("domain-adaptation")["kl"].model == "paper-mnist-half"
    assert arms("domain-adaptation", dataset="mnist")["kl"].model == "paper-mnist"
    assert arms("domain-adaptation", tau=3.0)["kl"].method.tau == 3


def test_the_biased_teacher_never_saw_one_group_and_the_fair_one_all() -> None:
    def groups(plan: str, arm: str, count: int = 300) -> torch.Tensor:
        spec = arms("bias", plan)[arm].data.model_copy(update={"count": count})
        return load(spec).factors["group"]

    outline, dark = scenes.STYLES.index("outline"), scenes.STYLES.index("dark")
    everything = set(groups("groups", "kl").tolist())
    assert {scenes.STYLES[group] for group in everything} == {"bright", "dark", "outline"}
    assert set(groups("groups", "teacher").tolist()) == everything - {outline}
    assert set(groups("fair", "teacher").tolist()) == everything
    assert 0 < (groups("fair", "kl", 2000) == dark).float().mean() < 0.1


def test_a_student_can_start_where_its_teacher_started() -> None:
    found = arms("domain-adaptation")
    teacher, student = found["teacher"], found["kl-same-start"]
    first = [
        networks.build(spec.model, 10, spec.initialisation_seed).state_dict()
        for spec in (teacher, student, found["kl"])
    ]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])
    assert not torch.equal(first[0]["body.head.weight"], first[2]["body.head.weight"])


def test_digits_of_all_domains_are_the_three_one_after_the_other() -> None:
    def drawn(domain: str) -> ImageData:
        return load(DataSpec(name="digits", split="train", count=30, options={"domain": domain}))

    every = drawn("all")
    for number, domain in enumerate(("orig", "color", "m")):
        alone = drawn(domain)
        part = slice(30 * number, 30 * (number + 1))
        assert torch.equal(every.images[part], alone.images)
        assert torch.equal(every.sources[part], alone.sources)
        assert every.factors["domain"][part].unique().tolist() == [number]


# --- composites -----------------------------------------------------------------------------


def test_a_composite_is_the_mean_of_its_parts_logits() -> None:
    parts = [networks.build("vgg-small", 10, seed).eval() for seed in (0, 1)]
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    composite = networks.freeze(networks.Composite(parts, (0.25, 0.75)))
    with torch.no_grad():
        expected = 0.25 * parts[0](images) + 0.75 * parts[1](images)
        assert torch.allclose(composite(images), expected, atol=1e-5)
        logits, features = networks.forward_with_features(composite, images)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.equal(features, logits)
    assert networks.taps(composite) == ()


def test_a_mirrored_composite_cannot_tell_left_from_right() -> None:
    network = networks.build("vgg-small", 10, 0).eval()
    images = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = networks.Composite([network], mirrored=True)
        assert torch.allclose(exact(images), exact(images.flip(3)), atol=1e-6)
        assert not torch.allclose(network(images), network(images.flip(3)), atol=1e-3)


def test_students_of_composites_wait_for_the_parts_and_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDNOTES_CACHE", str(tmp_path))
    asked = of("shape-and-cue-bias", seeds=1, train_count=64, epochs=1)
    plan = main_plan(asked).planned
    planned = [item for item in plan if item.arm in ("teacher-0.5", "mixture-0.5")]
    mixed, student = planned
    trained = cache.with_teachers(planned)
    assert [item.spec.role for item in trained] == ["teacher", "teacher", "student"]
    assert student.spec.trained_before == mixed.spec.parts
    assert not cache.is_complete(mixed.spec)
    for item in trained:
        cache.train_one(item, "cpu", None)
    assert cache.is_complete(mixed.spec)
    assert isinstance(cache.load(mixed.spec), networks.Composite)
    assert [path.name for path in (tmp_path / "networks").iterdir()].count(mixed.spec.key) == 0
    assert {part.key for part in mixed.spec.parts} <= {entry.spec.key for entry in cache.entries()}


# --- crops ----------------------------------------------------------------------------------


def test_a_crop_is_the_part_scaled_back() -> None:
    images = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[1.0, 0.3, 0.8]]).expand(3, 3)
    assert torch.allclose(crop(images, whole), images, atol=1e-5)
    # A quarter of the area, at the upper right corner: its inner pixels need no pixel outside it.
    corner = torch.tensor([[0.25, 0.0, 1.0]]).expand(3, 3)
    expected = F.interpolate(images[:, :, :8, 8:], (16, 16), mode="bilinear", align_corners=False)
    found = crop(images, corner)
    assert torch.allclose(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5)


def test_drawn_crops_stay_in_their_bounds() -> None:
    drawn = Crops(smallest=0.25, largest=0.5).draw(500, torch.Generator().manual_seed(0))
    assert drawn[:, 0].min() >= 0.25
    assert drawn[:, 0].max() <= 0.5
    assert 0 <= drawn[:, 1:].min() <= drawn[:, 1:].max() <= 1
    assert drawn[:, 0].std() > 0.05


# --- groups and domains of a folder of images -----------------------------------------------


def photos(root: Path, *parts: str, count: int = 5) -> None:
    """Class folders cat and dog of 16x16 noise in a folder."""
    generator = np.random.default_rng(len(parts))
    for name in ("cat", "dog"):
        folder = root.joinpath(*parts, name)
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    photos(tmp_path / "faces")
    rows = [f"{name}/{index}.png,{index % 3}" for name in ("cat", "dog") for index in range(5)]
    (tmp_path / "faces" / "t.csv").write_text("\n".join(["file,race", *rows]))
    return tmp_path / "faces"


def test_the_teacher_never_sees_the_group_that_is_named(faces: Path) -> None:
    how = {"dataset": f"imagefolder:{faces}", "groups": "t.csv:race"}
    asked = of("bias", unseen="2", **how)
    assert list(asked.plans) == ["groups"]
    assert "kl-tau-16" in asked.plans["groups"].arms
    assert asked.parameters() | {"groups": "t.csv:race", "unseen": "2"} == asked.parameters()
    specs = by_arm(asked.networks)
    teacher, student = specs["teacher"].data, specs["kl"].data
    assert load(teacher).factors["group"].unique().tolist() == [0, 1]
    assert load(student).factors["group"].unique().tolist() == [0, 1, 2]
    assert load(teacher).names == load(student).names == {"group": ("0", "1", "2")}
    blind = of("bias", **how)
    specs = by_arm(blind.networks)
    assert specs["teacher"].data == specs["kl"].data
    assert "unseen" not in blind.parameters()


def test_without_a_table_a_folder_is_cast_as_before(faces: Path) -> None:
    asked = of("bias", dataset=f"imagefolder:{faces}")
    assert "kl-tau-16" not in main_plan(asked).arms
    assert by_arm(asked.networks)["kl"].data.options == {}
    assert {"groups", "unseen"}.isdisjoint(asked.parameters())


def test_one_domain_is_seen_by_teachers_only(tmp_path: Path) -> None:
    for domain in ("art", "photo", "sketch"):
        photos(tmp_path / "pacs", domain)
    domains = ("photo", "art", "sketch")
    dataset = f"imagefolder:{tmp_path}/pacs"
    plan = main_plan(of("unseen-domains", dataset=dataset, unseen="photo"))
    for item in plan.planned:
        seen = load(item.spec.data).names["domain"]
        assert ("photo" in seen) == (item.spec.role == "teacher"), item.arm
        assert item.spec.num_classes == 2
    assert set(plan.arms) >= {"second-teacher", "independent", "kl", "hint", "crd"}
    study = Study("mine", {"preset": "smoke", "dataset": dataset})
    assert study.domains("photo") == domains
    plan = study.plan(
        "any", study.world(teacher={"domains": domains}, students={"domains": domains[1:]})
    )
    assert plan.test_images().names["domain"] == ("art", "sketch")
    parts = domain_accuracy.by_folder(plan.test_images(domains=domains), domains)
    assert [(name, len(part)) for name, part in parts.items()] == [(name, 2) for name in domains]


def test_teachers_and_students_see_domains_in_one_size(tmp_path: Path) -> None:
    photos(tmp_path / "pacs", "art")
    photos(tmp_path / "pacs", "photo", count=9)
    for path in (tmp_path / "pacs" / "art").rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path)
    asked = of("unseen-domains", dataset=f"imagefolder:{tmp_path}/pacs", unseen="photo")
    assert {item.spec.data.options["size"] for item in asked.networks} == {16}


def test_damaged_files_are_left_out_where_it_is_asked_for(faces: Path) -> None:
    study = Study(
        "mine", {"preset": "smoke", "dataset": f"imagefolder:{faces}", "skip_damaged": True}
    )
    assert study.world().options("student") == {"skip_damaged": True}
    assert study.parameters()["skip_damaged"]
    assert "skip_damaged" not in Study("mine", {"device": "cpu"}).parameters()


@pytest.mark.parametrize(
    ("chapter", "values", "words"),
    [
        (
            "bias",
            {"groups": "t.csv:race", "unseen": "9"},
            "no image is in the group '9'; .*0, 1, 2",
        ),
        ("bias", {"unseen": "2"}, "name the CSV"),
        ("bias", {"groups": "t.csv"}, "no column 'group'; it has: file, race"),
        ("unseen-domains", {"unseen": "photo"}, "one of two or more domain folders .*has: none"),
    ],
)
def test_what_groups_and_domains_cannot_be(
    faces: Path, chapter: str, values: dict[str, str], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        of(chapter, dataset=f"imagefolder:{faces}", **values)
    with pytest.raises(RequestError, match=r"(is for|need) a folder of images"):
        of(chapter, **values)


def test_the_plain_teacher_of_each_cast_lacks_what_the_teacher_was_given() -> None:
    """Or a comparison with its students would be one of the same networks."""
    for chapter in ("domain-adaptation", "bias", "color-invariance", "crop-and-shift-invariance"):
        for plan in study_of(chapter).plans.values():
            specs = by_arm(plan.planned)
            if "plain-teacher" in specs and "kl-plain" in specs:
                assert specs["plain-teacher"].key != specs["teacher"].key, chapter
                assert specs["kl-plain"].teacher == specs["plain-teacher"]
                assert specs["kl"].teacher == specs["teacher"]
    grey = by_arm(study_of("domain-adaptation").plans["domains"].planned)
    assert grey["plain-teacher"].data.options["domain"] == "orig"
    assert grey["teacher"].data.options["domain"] == "all"
