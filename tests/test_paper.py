"""The paper's settings: complete, fitting timm's networks, and what the preset makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from asked import NOTEBOOKS, by_arm, study_of
from PIL import Image
from safetensors.torch import save_file

from kdnotes import methods, networks
from kdnotes.data import DataSpec, load
from kdnotes.data.views import ResizedCrops, Views, to_float
from kdnotes.errors import RequestError
from kdnotes.methods.hint import projection
from kdnotes.study import Study, paper
from kdnotes.training import cache, loop
from kdnotes.training.cache import Planned
from kdnotes.training.specification import NetworkSpec, Recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in ImageNet's layout."""
    for split in ("train", "val"):
        for label in range(2):
            place = tmp_path / "photos" / split / f"n{label}"
            place.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (40, 32), (90 * label, 60 * index, 9)).save(place / f"{index}.png")
    return tmp_path / "photos"


def chapter(name: str, folder: Path, **values: object) -> Study:
    given = {"preset": "paper", "dataset": f"imagefolder:{folder}"}
    return study_of(name, **(given | values))


# From section 3 and the appendix of the paper: gamma and weight of KL, Hint and CRD.
PRINTED = {
    ("resnet50", "resnet18"): ((0.5, 0.5), (1, 5), (1, 0.8)),
    ("vgg19", "vgg11"): ((1, 0.2), (1, 0.5), (1, 0.8)),
    ("vgg19", "resnet18"): ((0.9, 0.1), (1, 0.2), (1, 1.2)),
    ("vit_base_patch32_224", "resnet18"): ((1, 0.2), (1, 1), (1, 0.2)),
    ("swin_base_patch4_window7_224", "swin_tiny_patch4_window7_224"): (
        (0.1, 0.9),
        (1, 1),
        (1, 0.8),
    ),
}


@pytest.mark.parametrize("names", PRINTED, ids="->".join)
def test_pairs_are_trained_as_printed(names: tuple[str, str], folder: Path) -> None:
    teacher, student = names
    specs = by_arm(chapter("fidelity", folder, teacher=teacher, student=student).networks)
    for method, (gamma, weight) in zip(("kl", "hint", "crd"), PRINTED[names], strict=True):
        spec = specs[method]
        assert (spec.method.gamma, spec.method.weight) == (gamma, weight)
        assert (spec.model, spec.teacher.model) == (student, teacher)
        assert (spec.recipe.epochs, spec.recipe.batch) == (100, 256)
    assert specs["independent"].recipe.epochs == 90
    assert specs["kl"].method.tau == 4
    crd = specs["crd"].method
    assert (crd.contrast_temperature, crd.negatives, crd.momentum) == (0.07, 16384, 0.5)
    if not student.startswith("swin"):
        recipe = specs["kl"].recipe
        rate = 0.01 if student.startswith("vgg") else 0.1
        assert (recipe.learning_rate, recipe.weight_decay) == (rate, 1e-4)
        # The first and the last step of each 30 epochs of 7 steps.
        found = [recipe.rate(step, 7) for step in (0, 209, 210, 419, 420, 630, 699)]
        shares = [1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]
        assert found == pytest.approx([rate * share for share in shares])


@pytest.mark.parametrize("name", paper.settings().imagenet.pairs)
def test_layers_and_weights_exist_in_timm(name: str) -> None:
    """Shapes only (nothing is computed): maps of the printed sizes, which Hint can match."""
    pair = paper.settings().imagenet.pairs[name]
    maps = []
    hint = methods.get("hint").model_validate(paper.settings().imagenet.settings_of("hint", pair))
    for model, layer in zip((pair.student, pair.teacher), hint.layers(), strict=True):
        with torch.device("meta"):
            network = networks.Normalized(timm.create_model(model), (0.5,) * 3, (0.2,) * 3).eval()
            seen = torch.zeros(2, 3, 224, 224)
            found = networks.features_at(network, seen, layer)
            logits, features = networks.forward_with_features(network, seen)
        assert logits.shape == (2, 1000)
        assert features.ndim == 2
        maps.append(found)
        side = 56 if model.startswith("vgg") else 7 if name == "vit-resnet18" else 28
        assert found.shape[2:] == (side, side)
    with torch.device("meta"):
        projected = projection(maps[0].shape[1:], maps[1].shape[1:])(maps[0])
    assert projected.shape == maps[1].shape
    if pair.published and pair.published != "resnet50-stylised":
        assert timm.is_model_pretrained(pair.published)
    if pair.antialiased_student:
        assert timm.is_model(pair.antialiased_student)


def test_first_pair_is_the_default_and_unknown_ones_are_named(folder: Path) -> None:
    assert chapter("fidelity", folder).settings.student == "resnet18"
    assert chapter("fidelity", folder, teacher="vgg19").settings.student == "vgg11"
    high = by_arm(chapter("fidelity", folder, teacher="stylised-high").networks)
    assert high["hint"].method.weight == 100
    with pytest.raises(RequestError, match=r"no pair with teacher 'vgg16'; it has resnet50-"):
        chapter("fidelity", folder, teacher="vgg16")
    with pytest.raises(RequestError, match="needs a folder in ImageNet's layout"):
        study_of("fidelity", preset="paper")
    with pytest.raises(RequestError, match="needs a folder in ImageNet's layout"):
        study_of("fidelity", preset="paper", dataset="digits")


def test_views_are_those_of_the_question(folder: Path) -> None:
    usual = ResizedCrops(smallest=0.08, aspect=4 / 3, size=224)
    plain = by_arm(chapter("fidelity", folder).networks)
    assert plain["kl"].recipe.resized == plain["teacher"].recipe.resized == usual
    colour = by_arm(chapter("color-invariance", folder).networks)
    assert (colour["teacher"].recipe.jitter is None, colour["kl"].recipe.jitter) == (False, None)
    invariance = chapter("crop-and-shift-invariance", folder)
    crops = by_arm(invariance.plans["crops"].planned)
    assert crops["teacher"].recipe.resized == usual
    assert crops["kl"].recipe.resized == ResizedCrops(smallest=1, aspect=1, size=224)
    assert crops["hint"].method.weight == 0.2
    shifts = by_arm(invariance.plans["shifts"].planned)
    assert shifts["teacher"].model == "resnetblur50"
    assert shifts["independent-blur"].model == "resnetblur18"


def test_published_teachers_need_their_thousand_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_arm(chapter("fidelity", folder).networks)["teacher"].pretrained == ""
    monkeypatch.setattr(Study, "classes", lambda self, world: tuple(map(str, range(1000))))
    specs = by_arm(chapter("fidelity", folder).networks)
    assert specs["teacher"].pretrained == "resnet50.tv_in1k"
    assert specs["second-teacher"].pretrained == ""
    colour = by_arm(chapter("color-invariance", folder).networks)
    assert colour["teacher"].pretrained == ""  # it sees jittered images
    assert colour["plain-teacher"] == specs["teacher"]
    plans = chapter("crop-and-shift-invariance", folder).plans
    invariance = {name: by_arm(plan.planned) for name, plan in plans.items()}
    assert invariance["crops"]["teacher"].pretrained == "resnet50.tv_in1k"
    assert invariance["crops"]["plain-teacher"].pretrained == ""
    assert invariance["shifts"]["teacher"].pretrained == "resnetblur50.bt_in1k"
    assert invariance["flips"]["teacher"].pretrained == ""
    monkeypatch.setenv("KDNOTES_WEIGHTS", "none")
    assert by_arm(chapter("fidelity", folder).networks)["teacher"].pretrained == ""


def test_a_method_that_the_paper_does_not_have_uses_its_own_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = paper.settings().imagenet.pairs["resnet50-resnet18"]
    assert paper.settings().imagenet.settings_of("other", pair) == {}
    text = Path(paper.__file__).with_name("paper.yml").read_text()
    (folder / "mine.yml").write_text(text.replace("        kl: {gamma: 0.5, weight: 0.5}\n", ""))
    monkeypatch.setenv("KDNOTES_PAPER", str(folder / "mine.yml"))
    specs = by_arm(chapter("fidelity", folder, tau=3.0).networks)
    assert specs["kl"].method == methods.get("kl")(tau=3)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_chapter_plans_a_method_that_is_off_by_default(name: str, folder: Path) -> None:
    """With its own settings and the temperature of KL, since the paper has none of it."""
    try:
        study = chapter(name, folder, methods="kl,dkd")
    except RequestError:  # it is about images that no folder has
        study = study_of(name, preset="paper", dataset="digits", methods="kl,dkd")
    specs = by_arm(study.networks)
    assert "hint" not in specs
    assert specs["dkd"].method == methods.get("dkd")(tau=specs["kl"].method.tau)


def test_published_weights_come_from_a_file_or_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = timm.create_model("resnet10t", num_classes=1000)
    save_file(body.state_dict(), tmp_path / "resnet10t.c3_in1k.safetensors")
    spec = NetworkSpec(
        role="teacher",
        model="resnet10t",
        num_classes=1000,
        data=DataSpec(name="scenes", split="train", count=10),
        recipe=Recipe(epochs=1),
        pretrained="resnet10t.c3_in1k",
        large_images=True,
    )
    with pytest.raises(RequestError, match=r"hf download timm/resnet10t.*folder KDNOTES_WEIGHTS"):
        cache.train_one(Planned("teacher", spec), "cpu", None)
    monkeypatch.setenv("KDNOTES_WEIGHTS", str(tmp_path))
    cache.train_one(Planned("teacher", spec), "cpu", None)
    network = cache.load(spec)
    seen = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        mean = torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(timm.data.IMAGENET_DEFAULT_STD).view(1, 3, 1, 1)
        assert torch.allclose(network(seen), body.eval()((seen - mean) / std), atol=1e-5)
    with pytest.raises(RequestError, match="there are no weights 'resnet10t-mine'"):
        networks.load_published("resnet10t", "resnet10t-mine", 1000)
    save_file({"x": torch.zeros(1)}, tmp_path / "resnet10t-mine.safetensors")
    with pytest.raises(RequestError, match="does not fit resnet10t"):
        networks.load_published("resnet10t", "resnet10t-mine", 1000)


def test_digits_are_trained_as_printed() -> None:
    specs = by_arm(study_of("domain-adaptation", preset="paper", dataset="digits").networks)
    for method, (gamma, weight) in {"kl": (0.1, 0.9), "hint": (1, 2), "crd": (1, 0.1)}.items():
        assert (specs[method].method.gamma, specs[method].method.weight) == (gamma, weight)
    assert specs["kl"].method.tau == 8
    crd = specs["crd"].method
    assert (crd.contrast_temperature, crd.negatives) == (0.1, 32)
    network = networks.build(specs["hint"].model, 10, seed=0)
    assert networks.hint_layer(network, specs["hint"].method.student_layer) == "body.stages.1"
    recipe = specs["kl"].recipe
    assert (recipe.epochs, recipe.batch, recipe.optimizer) == (14, 64, "adadelta")


def test_own_settings_file_is_read_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(paper.__file__).with_name("paper.yml").read_text()
    copy = tmp_path / "mine.yml"
    monkeypatch.setenv("KDNOTES_PAPER", str(copy))
    with pytest.raises(RequestError, match="cannot read"):
        paper.settings()
    copy.write_text(text.replace("batch: 256", "batch: 64"))
    assert paper.settings().imagenet.preset.batch == 64
    copy.write_text(text.replace("batch: 256", "batch: none"))
    with pytest.raises(
        RequestError, match=r"mine\.yml: imagenet\.preset\.batch: Input should be a valid"
    ):
        paper.settings()
    copy.write_text("imagenet: [")
    with pytest.raises(RequestError, match=r"mine\.yml: while parsing"):
        paper.settings()
    copy.write_text(text.replace("kl: {gamma: 0.1, weight: 0.9}", "kl: {gama: 0.1}"))
    with pytest.raises(RequestError, match=r"methods\.gama: Extra"):
        paper.settings()


def test_resized_crops_worked_by_hand() -> None:
    """A quarter of the image at a corner, as it is and mirrored; and the whole of it."""
    image = torch.arange(48).view(1, 3, 4, 4).to(torch.uint8)
    seen = to_float(image) * 255
    views = ResizedCrops(size=None)
    corner = torch.tensor([[0.5, 0.5, 1.0, 0.0, 0.0], [0.5, 0.5, 1.0, 0.0, 1.0]])
    two = ResizedCrops.model_construct(size=2).apply(seen.expand(2, -1, -1, -1), corner)
    assert torch.allclose(two[0], seen[0, :, 2:, :2], atol=1e-4)
    assert torch.allclose(two[1], seen[0, :, 2:, :2].flip(2), atol=1e-4)
    assert torch.allclose(views.whole(seen), seen, atol=1e-4)


def test_resized_crops_are_drawn_within_their_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    views = ResizedCrops(smallest=0.2, largest=0.5, aspect=4 / 3).draw(2000, generator)
    height, width, down, right, mirrored = views.unbind(1)
    area = height * width
    assert area.min() + 1e-6 >= 0.2
    assert area.max() <= 0.5 + 1e-6
    assert (width / height).log().abs().max() <= torch.tensor(4 / 3).log() + 1e-5
    assert min(down.min(), right.min()) >= 0
    assert max(down.max(), right.max()) <= 1
    assert 0.45 < mirrored.mean() < 0.55
    assert ResizedCrops(flip=False).draw(9, generator)[:, 4].sum() == 0


@pytest.mark.parametrize("method", ["kl", "hint"])
def test_live_teacher_sees_what_its_student_sees(method: str) -> None:
    spec = DataSpec(name="scenes", split="train", count=32)
    recipe = Recipe(epochs=2, batch=16, views=Views(pad=0), resized=ResizedCrops(smallest=0.3))
    taught = methods.get(method)()  # with the default settings, which name layers by depth
    student, teacher = (networks.build("vgg-small", 10, seed) for seed in (0, 1))
    teacher.eval().requires_grad_(False)
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    for name, network in (("student", student), ("teacher", teacher)):
        network.body.stages.register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0].detach().clone())
        )
    alone = NetworkSpec(role="teacher", model="vgg-small", num_classes=10, data=spec, recipe=recipe)
    distilled = {"role": "student", "method": taught, "teacher": alone}
    network_spec = alone.model_copy(update=distilled)
    loop.train(network_spec, student, load(spec), loop.Teacher(teacher))
    asked = [[images for images in shown if len(images) == 16] for shown in seen.values()]
    assert len(asked[0]) == 4
    assert all(torch.equal(*both) for both in zip(*asked, strict=True))
    assert not torch.equal(asked[0][0], asked[0][2])
