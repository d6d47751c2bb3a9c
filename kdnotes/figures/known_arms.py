"""The looks of the arms of the book, until the arms themselves declare them; goes then."""

from __future__ import annotations

from kdnotes.figures.looks import Look, declare

declare("teacher", Look("Teacher", "Teacher", "#000000", "*", "-"))
declare("second-teacher", Look("Second teacher", "Second teacher", "#B05A8C", "P", "--"))
declare("plain-teacher", Look("Plain teacher", "Plain teacher", "#4D4D4D", "*", ":", hollow=True))
declare("independent", Look("Independent (no teacher)", "Independent", "#999999", "o", "--"))
declare("kl", Look("KL (soft labels)", "KL", "#0072B2", "s", "-"))
declare("hint", Look("Hint (feature maps)", "Hint", "#E69F00", "^", "-."))
declare("crd", Look("CRD (contrastive)", "CRD", "#007F5C", "D", (0, (5, 1))))
declare("kl-plain", Look("KL, plain teacher", "KL plain", "#66AAD1", "s", ":", hollow=True))
declare("hint-plain", Look("Hint, plain teacher", "Hint plain", "#F0C566", "^", ":", hollow=True))
declare("crd-plain", Look("CRD, plain teacher", "CRD plain", "#66B29D", "D", ":", hollow=True))
declare("hint-1", Look("Hint at layer 1", "Hint 1", "#F3C97B", "1", ":"))
declare("hint-2", Look("Hint at layer 2", "Hint 2", "#D98F00", "2", "-."))
declare("hint-3", Look("Hint at layer 3", "Hint 3", "#A35F00", "3", "--"))
declare("hint-logits", Look("Hint at the logits", "Hint logits", "#5C3000", "4", "-"))
declare(
    "control-second-teacher",
    Look("KL of the second teacher", "KL, other teacher", "#7A2E5D", "v", (0, (3, 1, 1, 1))),
)
declare(
    "control-smoothed", Look("Soft labels, no teacher", "Smoothed", "#56B4E9", "<", (0, (1, 1)))
)
declare(
    "control-permuted",
    Look("Soft labels, permuted", "Permuted", "#D55E00", ">", (0, (3, 1, 1, 1, 1, 1))),
)
declare("foreign", Look("Foreign network", "Foreign", "#6B4E16", "X", (0, (5, 5))))
declare(
    "independent-blur",
    Look("Independent, anti-aliased", "Anti-aliased", "#6E6E6E", "h", (0, (1, 1))),
)
declare("kl-matched", Look("KL, stopped early", "KL early", "#4C9BCB", "s", "--", hollow=True))
declare(
    "hint-matched", Look("Hint, stopped early", "Hint early", "#EDB54A", "^", "--", hollow=True)
)
declare("kl-same-start", Look("KL from the teacher's start", "KL same start", "#00517E", "p", "--"))
declare(
    "independent-same-start",
    Look("Independent, the teacher's start", "Indep. same start", "#777777", "p", ":", hollow=True),
)
declare("kl-weight-0.1", Look("KL, weight .1", "KL .1", "#9CC9E5", "s", ":"))
declare("kl-weight-0.5", Look("KL, weight .5", "KL .5", "#4C9BCB", "s", "--"))
declare("kl-tau-1", Look("KL, temperature 1", "KL tau 1", "#9CC9E5", "<", ":"))
declare("kl-tau-16", Look("KL, temperature 16", "KL tau 16", "#00416A", ">", "--"))
declare("kl-images-few", Look("KL, a quarter of the images", "KL few images", "#4C9BCB", "v", ":"))
declare(
    "independent-images-few",
    Look("Independent, a quarter of the images", "Indep. few images", "#B5B5B5", "v", ":"),
)
declare("kl-epochs-few", Look("KL, few epochs", "KL few epochs", "#4C9BCB", "D", ":"))
declare(
    "independent-epochs-few",
    Look("Independent, few epochs", "Indep. few epochs", "#B5B5B5", "D", ":"),
)
for _kind, _label, _short, _marker in (
    ("teacher", "Mixed teacher", "Mix", "*"),
    ("mixture", "KL of a mixture", "KL mix", "s"),
):
    for _share, _text, _colour in (
        ("0.25", "1/4", "#3B7FA6"),
        ("0.5", "1/2", "#7A6FA3"),
        ("0.75", "3/4", "#A85A86"),
    ):
        _names = (f"{_label}, {_text} marker", f"{_short} {_text}")
        declare(f"{_kind}-{_share}", Look(*_names, _colour, _marker, "--", _kind == "teacher"))
