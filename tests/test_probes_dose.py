"""Arms put into order by the dose that they got."""

from __future__ import annotations

from kdnotes.probes.dose import Dose, ladders

ARMS = (
    *("independent", "kl", "kl-weight-0.1", "kl-weight-0.5", "kl-tau-16", "kl-tau-1", "hint-1"),
    *("kl-images-few", "independent-images-few", "kl-epochs-2", "independent-epochs-2"),
    *("hint-logits", "hint", "hint-3", "mixture-0.5", "mixture-0.25", "mixture-0.75"),
    *("teacher-0.25", "teacher-0.5", "teacher-0.75"),
)
OWN = {"weight": 0.9, "tau": 4, "images": 600, "epochs": 6}
FEW = {"images": 150, "epochs": 1}


def test_doses_rise_and_have_their_own_reference() -> None:
    found = ladders(ARMS, OWN, FEW)
    assert list(found) == ["weight", "tau", "images", "epochs", "depth", "mixture"]
    assert found["weight"] == [
        Dose(0.1, "kl-weight-0.1"),
        Dose(0.5, "kl-weight-0.5"),
        Dose(0.9, "kl"),
    ]
    assert [(dose.at, dose.arm) for dose in found["tau"]] == [
        (1, "kl-tau-1"),
        (4, "kl"),
        (16, "kl-tau-16"),
    ]
    assert found["images"] == [
        Dose(150, "kl-images-few", "independent-images-few"),
        Dose(600, "kl", "independent"),
    ]
    assert [dose.reference for dose in found["epochs"]] == ["independent-epochs-2", "independent"]
    assert [dose.arm for dose in found["depth"]] == ["hint-1", "hint", "hint-3", "hint-logits"]
    assert found["mixture"] == [
        Dose(0.0, "kl"),
        Dose(0.25, "mixture-0.25", teacher="teacher-0.25"),
        Dose(0.5, "mixture-0.5", teacher="teacher-0.5"),
        Dose(0.75, "mixture-0.75", teacher="teacher-0.75"),
    ]


def test_a_factor_without_two_doses_is_left_out() -> None:
    assert ladders(("independent", "kl", "hint"), OWN) == {}
    assert "images" not in ladders(ARMS, OWN)  # nobody said how few
    only_kl = [arm for arm in ARMS if not arm.startswith("hint")]
    assert "depth" not in ladders(only_kl, OWN)
    # What is swept may have been set to the very dose that kl has.
    assert [dose.arm for dose in ladders(ARMS, OWN | {"tau": 16})["tau"]] == ["kl-tau-1", "kl"]
    without_kl = [arm for arm in ARMS if arm != "kl"]
    assert [dose.at for dose in ladders(without_kl, OWN)["weight"]] == [0.1, 0.5]


def test_a_depth_without_an_arm_is_that_of_hint() -> None:
    shallow = ("hint", "hint-2", "hint-3", "hint-logits")
    assert [(dose.at, dose.arm) for dose in ladders(shallow, OWN)["depth"]] == [
        ("1", "hint"),
        ("2", "hint-2"),
        ("3", "hint-3"),
        ("logits", "hint-logits"),
    ]
    two_stages = ("hint", "hint-logits")
    assert [dose.arm for dose in ladders(two_stages, OWN)["depth"]] == list(two_stages)
