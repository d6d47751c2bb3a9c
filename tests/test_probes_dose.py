"""Arms put into order by the dose that they got."""

from __future__ import annotations

from kdnotes.data.views import ColorJitter
from kdnotes.methods.kl import KL
from kdnotes.probes.dose import Dose, ladders
from kdnotes.study import Study, arms


def test_doses_rise_and_know_their_reference_and_their_teacher() -> None:
    study = Study("any", {"preset": "smoke"})
    plan = study.plan("one", study.world())
    first, second = plan.teacher(), plan.plain_teacher(jitter=ColorJitter())
    kl = plan.students(arms.taught_by(KL()), of=first)
    warm = plan.students(arms.at_temperature(kl, 16), of=first)
    cold = plan.students(arms.at_temperature(kl, 1), of=first)
    few = plan.students(kl.variant("few", "few"), of=first, epochs=1)
    alone = plan.students(arms.INDEPENDENT.variant("few", "few"), epochs=1)
    mixed = plan.mixed_teacher(first, second, 0.25)
    mixture = plan.students(arms.mixture(kl, 0.25), of=mixed)
    found = ladders(
        {
            "tau": {16: warm, 4: kl, 1: cold},
            "epochs": {2: kl, 1: few},
            "layer": {"2/3": kl, "1/3": warm},
            "mixture": {0.25: mixture, 0.0: kl},
            "weight": {0.9: kl},
        },
        plan.planned,
        {few.name: alone},
    )
    assert found == {
        "tau": [Dose(1, "kl-tau-1"), Dose(4, "kl"), Dose(16, "kl-tau-16")],
        "epochs": [Dose(1, "kl-few", "independent-few"), Dose(2, "kl")],
        "layer": [Dose("2/3", "kl"), Dose("1/3", "kl-tau-16")],
        "mixture": [Dose(0.0, "kl"), Dose(0.25, "mixture-0.25", teacher="teacher-0.25")],
    }
    said = [Dose(at, "kl").said for at in (0.0, 0.25, 1, 16.0, 1500, "2/3")]
    assert said == ["0", ".25", "1", "16", "1500", "2/3"]
