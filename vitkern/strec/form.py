"""Where the paper of STRec, its authors' code and a third, better conditioned reading differ; and how dense each layer
is.

What differs between paper and code, and what chooses: the noise (``noise``), the sigmoid's temperature, S_0, scores
normalised over the sequence, the forced last item, projections in the attention, the size of "infinity"
(``strength``), all in `Form`; binary or softmax cross-entropy (the loss of training); noise in inference too
(``eval_noise`` of the model). One is no choice: items are sorted once, and later layers take prefixes.
"""

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Form:
    """One reading of STRec (Li et al., CIKM 2023, section 3.2).

    noise: what is added to the scores, "normal" (0, 1), "uniform" (0, 1) or None; a model may ask for another.
    temperature: S_l = sigmoid(temperature * (score + alpha_l)).
    open_first: S_0 is 1, else sigmoid(temperature * (score + alpha_0)).
    normalise: scores have mean 0 and variance 1 over a sequence.
    force_last: the last item's score is set to 10 in pre-training. In fine-tuning it is first in every form, since its
        row is the output.
    projections: attention has query, key, value and output projections and 1 / sqrt(D).
    relaxation: "product" adds (S_l,i S_{l-1},j - 1) * strength to the logits; "log" adds log S_{l-1},j: a key counts
        S times, and a query that was not sampled still attends.
    clock: see `vitkern.nn.strec.Sampler`.
    """

    noise: str | None
    temperature: float
    open_first: bool
    normalise: bool
    force_last: bool
    projections: bool
    relaxation: str
    clock: str
    strength: float = 1e8


FORMS = {
    "official": Form("normal", 100.0, False, True, True, True, "product", "seconds"),
    "paper": Form("uniform", 1.0, True, False, False, False, "product", "seconds"),
    "log": Form("uniform", 5.0, True, True, True, True, "log", "log", strength=1.0),
}

# Of each noise, by its name. The gates of pre-training are trained with the noise and would be stricter without.
MEANS = {"normal": 0.0, "uniform": 0.5, None: 0.0}

KS = {50: (50, 20, 20, 5, 5, 5, 5, 1), 8: (8, 3, 3, 3, 3, 3, 3, 1)}
ALPHAS = (2.0, -0.2, -0.2, -0.3, -0.3, -0.5, -0.5, -0.7, -0.7)
ACTIVATION = {50: "tanh", 8: "relu"}


def default_ks(max_len: int, n_layers: int) -> tuple[int, ...]:
    """k_l of the authors for 8 layers and lengths 8 and 50; else the fractions of length 50, read at the same depth.

    Their first layer computes every row and the last one row: two layers leave the sampler nothing to choose, and need
    k_1 of their own.
    """
    if n_layers == 8 and max_len in KS:
        return KS[max_len]
    middle = [KS[50][1 + round(i * 5 / max(1, n_layers - 3))] / 50 for i in range(n_layers - 2)]
    return (max_len, *(max(1, round(max_len * part)) for part in middle), 1)[-n_layers:]


def default_alphas(n_layers: int) -> tuple[float, ...]:
    """alpha_0 .. alpha_L: the authors' for 8 layers, else theirs read at the same depth."""
    return (ALPHAS[0], *(ALPHAS[1 + round(i * 7 / max(1, n_layers - 1))] for i in range(n_layers)))


def check_form(form: str | Form, noise: str | None, sampler: str) -> tuple[Form, str | None]:
    """The form and its noise, or the one that is asked for.

    Raises:
        ValueError: an unknown form or noise, or a random sampler without noise.
    """
    if isinstance(form, str) and form not in FORMS:
        raise ValueError(f"STRec: unknown form: got {form!r}; expected one of {', '.join(FORMS)}.")
    form = FORMS[form] if isinstance(form, str) else form
    chosen = form.noise if noise == "form" else noise
    if chosen not in MEANS:
        raise ValueError(f"STRec: unknown noise: got {noise!r}; expected normal, uniform, None or form.")
    if sampler == "random" and chosen is None:
        raise ValueError("STRec: a random sampler needs noise: got noise=None; expected normal or uniform.")
    return form, chosen


def check_alphas(alphas, n_layers: int) -> tuple[float, ...]:
    """
    Raises:
        ValueError: another count than layers and one, or one that is not finite.
    """
    alphas = tuple(map(float, alphas))
    if not all(map(math.isfinite, alphas)):
        raise ValueError(f"STRec: alphas is not usable: got {list(alphas)}; expected finite numbers.")
    if len(alphas) != n_layers + 1:
        got = f"{len(alphas)} for {n_layers} layers"
        raise ValueError(f"STRec: alphas does not fit n_layers: got {got}; expected alpha_0 .. alpha_L.")
    return alphas


def check_ks(ks, max_len: int, n_layers: int) -> tuple[int, ...]:
    """
    Raises:
        ValueError: another count than layers, not whole numbers above 0, more than ``max_len``, or growing.
    """
    ks = tuple(ks)
    if len(ks) != n_layers:
        raise ValueError(f"STRec: ks does not fit n_layers: got {len(ks)} for {n_layers}; expected one k a layer.")
    if any(not isinstance(k, int) or k < 1 for k in ks) or ks[0] > max_len:
        raise ValueError(f"STRec: ks is not usable: got {list(ks)}; expected 1 .. max_len = {max_len}.")
    if any(later > k for k, later in pairwise(ks)):
        raise ValueError(f"STRec: ks grows: got {list(ks)}; expected no k above the one before.")
    return ks


def density(ks: tuple[int, ...], max_len: int) -> float:
    """Mean part of the rows that a layer computes; the paper's sparsity is 1 minus this."""
    return sum(ks) / (len(ks) * max_len)
