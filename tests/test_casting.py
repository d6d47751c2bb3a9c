"""Which networks the casts ask for, and the teachers that are made of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kdnotes import networks, study
from kdnotes.data import load
from kdnotes.data.views import Crops, crop
from kdnotes.errors import RequestError
from kdnotes.probes import domain_accuracy
from kdnotes.study import Study, casting
from kdnotes.training import cache
from kdnotes.training.specification import NetworkSpec

ROLES = ("teacher", "student")
CHAPTERS = [name for name in study.known_chapters() if name != "scorecard"]


def of(chapter: str, **parameters: object) -> Study:
    return study.chapter(chapter, preset="smoke", **parameters)


def arms(chapter: str, cast: str, **parameters: object) -> dict[str, list[NetworkSpec]]:
    found: dict[str, list[NetworkSpec]] = {}
    for item in of(chapter, **parameters).casting.plan(cast):
        found.setdefault(item.arm, []).append(item.spec)
    return found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_students_of_one_seed_are_paired_and_teachers_apart(chapter: str) -> None:
    asked = of(chapter)
    for cast in asked.cast_names:
        planned = asked.casting.plan(cast)
        assert len({(item.arm, item.spec.seed) for item in planned}) == len(planned)
        assert sum(item.arm == "teacher" for item in planned) == 1
        by_seed: dict[tuple[str, int], set[int]] = {}
        for item in planned:
            if item.spec.role == "student" and not item.arm.endswith("same-start"):
                name = (item.spec.model, item.spec.seed)
                by_seed.setdefault(name, set()).add(item.spec.initialisation_seed)
        assert all(len(starts) == 1 for starts in by_seed.values())
        starts = {item.spec.initialisation_seed for item in planned if item.spec.role == "teacher"}
        assert starts.isdisjoint(set.union(*by_seed.values()))


def test_casts_that_differ_in_students_alone_share_a_teacher() -> None:
    teacher = arms("localization", "cues")["teacher"]
    for chapter, cast in (
        ("shape-and-cue-bias", "weights"),
        ("dose", "dose"),
        ("architectures", "cnn-cnn"),
        ("architectures", "cnn-vit"),
    ):
        assert arms(chapter, cast)["teacher"] == teacher
    assert arms("bias", "temperature")["teacher"] == arms("bias", "groups")["teacher"]
    plain = arms("crop-and-shift-invariance", "crops")["plain-teacher"]
    (exact,) = arms("crop-and-shift-invariance", "exact-flips")["teacher"]
    assert list(exact.parts) == plain


def test_objectives_are_read_from_the_names_of_arms() -> None:
    found = of("dose").casting
    for weight in (0.1, 0.5):
        spec = found.objective(f"kl-weight-{weight}", "dose")
        assert (spec.method, spec.weight, spec.gamma) == ("kl", weight, 1 - weight)
    assert found.objective("kl-tau-16", "dose").tau == 16
    assert found.objective("mixture-0.25", "dose") == found.objective("kl", "dose")
    assert found.objective("kl-tau-4", "dose") == found.objective("kl", "dose")
    domains = of("domain-adaptation").casting
    hint = domains.objective("hint", "domains")
    assert (hint.hint_student, hint.weight) == ("body.stages.1", 2.0)
    assert domains.objective("kl", "domains").tau == 8
    crd = domains.objective("crd", "domains")
    assert (crd.weight, crd.crd_tau, crd.crd_negatives) == (0.1, 0.1, 32)


def test_the_biased_teacher_never_saw_one_group_and_the_fair_one_all() -> None:
    asked = of("bias").casting

    def groups(cast: str, role: str) -> set[int]:
        spec = asked.data(cast, role)
        images = load(spec.model_copy(update={"count": 300}))
        return set(images.factors["group"].tolist())

    everything = {group for group, weight in enumerate(casting.ALL_GROUPS) if weight}
    assert groups("groups", "teacher") == everything - {casting.UNSEEN_GROUP}
    assert groups("groups", "student") == everything
    assert groups("fair", "teacher") == everything
    few = load(asked.data("fair", "student").model_copy(update={"count": 2000}))
    share = (few.factors["group"] == casting.RARE_GROUP).float().mean()
    assert 0 < share < 0.1


def test_a_student_can_start_where_its_teacher_started() -> None:
    found = arms("domain-adaptation", "domains")
    (teacher,) = found["teacher"]
    (student,) = found["kl-same-start"]
    first = [
        networks.build(spec.model, 10, spec.initialisation_seed).state_dict()
        for spec in (teacher, student, found["kl"][0])
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
    planned = [
        item for item in asked.casting.plan("mixture") if item.arm in ("teacher-0.5", "mixture-0.5")
    ]
    mixed, student = planned
    trained = cache.with_teachers(planned)
    assert [item.spec.role for item in trained] == ["teacher", "teacher", "student"]
    assert cache.keys_behind(student.spec) == [part.key for part in mixed.spec.parts]
    assert not cache.is_complete(mixed.spec)
    for item in trained:
        cache.train_one(item, "cpu", None)
    assert cache.is_complete(mixed.spec)
    assert isinstance(cache.load(mixed.spec), networks.Composite)
    assert [path.name for path in (tmp_path / "networks").iterdir()].count(mixed.spec.key) == 0
    assert {part.key for part in mixed.spec.parts} <= {entry.key for entry in cache.entries()}


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
    assert asked.cast_names == ("groups", "temperature")
    assert asked.parameters() | {"groups": "t.csv:race", "unseen": "2"} == asked.parameters()
    teacher, student = (asked.casting.data("groups", role) for role in ROLES)
    assert load(teacher).factors["group"].unique().tolist() == [0, 1]
    assert load(student).factors["group"].unique().tolist() == [0, 1, 2]
    assert load(teacher).names == load(student).names == {"group": ("0", "1", "2")}
    plans = [asked.casting.plan(cast) for cast in asked.cast_names]
    assert plans[0][0].spec.key == plans[1][0].spec.key
    blind = of("bias", **how)
    assert blind.casting.data("groups", "teacher") == blind.casting.data("groups", "student")
    assert "unseen" not in blind.parameters()


def test_without_a_table_a_folder_is_cast_as_before(faces: Path) -> None:
    asked = of("bias", dataset=f"imagefolder:{faces}")
    assert asked.cast_names == ("plain",)
    assert asked.casting.data("plain", "student").options == {}
    assert {"groups", "unseen"}.isdisjoint(asked.parameters())


def test_one_domain_is_seen_by_teachers_only(tmp_path: Path) -> None:
    for domain in ("art", "photo", "sketch"):
        photos(tmp_path / "pacs", domain)
    asked = of("unseen-domains", dataset=f"imagefolder:{tmp_path}/pacs", unseen="photo")
    assert asked.cast_names == ("folder-domains",)
    assert asked.casting.domains == ("photo", "art", "sketch")
    for item in asked.casting.plan("folder-domains"):
        seen = load(item.spec.data).names["domain"]
        assert ("photo" in seen) == (item.spec.role == "teacher"), item.arm
        assert item.spec.num_classes == 2
    arms = {item.arm for item in asked.casting.plan("folder-domains")}
    assert arms >= {"second-teacher", "independent", "kl", "hint", "crd", "control-smoothed"}
    assert asked.test().names["domain"] == ("art", "sketch")
    parts = domain_accuracy.by_folder(
        asked.test(domains=asked.casting.domains), asked.casting.domains
    )
    assert {name: len(part) for name, part in parts.items()} == dict.fromkeys(
        asked.casting.domains, 2
    )
    assert list(parts) == ["photo", "art", "sketch"]


def test_teachers_and_students_see_domains_in_one_size(tmp_path: Path) -> None:
    photos(tmp_path / "pacs", "art")
    photos(tmp_path / "pacs", "photo", count=9)
    for path in (tmp_path / "pacs" / "art").rglob("*.png"):
        Image.open(path).resize((40, 40)).save(path)
    asked = of("unseen-domains", dataset=f"imagefolder:{tmp_path}/pacs", unseen="photo")
    assert {asked.casting.data("folder-domains", role).options["size"] for role in ROLES} == {16}


@pytest.mark.parametrize(
    ("chapter", "parameters", "words"),
    [
        (
            "bias",
            {"groups": "t.csv:race", "unseen": "9"},
            "no image is in the group '9'; .*0, 1, 2",
        ),
        ("bias", {"unseen": "2"}, "name the CSV"),
        ("bias", {"groups": "t.csv"}, "no column 'group'; it has: file, race"),
        ("unseen-domains", {"unseen": "photo"}, "one of two or more domain folders .*has: none"),
        ("unseen-domains", {"groups": "t.csv"}, "no use for 'groups'; it is for: bias"),
        ("fidelity", {"unseen": "2"}, "no use for 'unseen'"),
    ],
)
def test_what_groups_and_domains_cannot_be(
    faces: Path, chapter: str, parameters: dict[str, str], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        of(chapter, dataset=f"imagefolder:{faces}", **parameters)
    with pytest.raises(RequestError, match=r"is for a folder of images|name the CSV|no use"):
        of(chapter, **parameters)
