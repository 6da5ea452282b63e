"""P-BIGRAM: how the uncertainty of the next token makes hills and rivers, measured by training a table of logits."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from .. import theory_decay
from .._typing import FloatArray
from ..schedules import WSD, Constant, Schedule
from ..shapes import Inverse
from . import bigram_theory
from .bigram import BigramLanguage, bigram_language, likely
from .bigram_gains import spearman
from .bigram_model import LogitTable, context_spectrum
from .bigram_run import train_many
from .predict_decay import cooldown
from .prediction import Lab, Outcome, Parameters, Prediction, Span, mean_and_error, registrar_of

BIGRAM: dict[str, Prediction] = {}
predicts = registrar_of(BIGRAM)

SMALL_RATE = "three parts in a hundred, said of eta = 0.1"


def trained(
    lab: Lab, language: BigramLanguage, plans: list[Schedule], replicates: int, **options: object
) -> list[xr.Dataset]:
    """The runs of a logit table on the same sampled batches."""
    rng = np.random.default_rng(lab.seed())
    runs = train_many(LogitTable(language), plans, replicates=replicates, rng=rng, **options)  # type: ignore[arg-type]
    if any(ds.attrs["status"] == "interrupted" for ds in runs):
        raise KeyboardInterrupt
    return runs


def last_excess(ds: xr.Dataset) -> FloatArray:
    """Excess of each context at the end; (replicates, contexts)."""
    return ds["context_excess"].values[..., -1]


def settled_excess(lab: Lab, language: BigramLanguage, lr: float, steps: int, batch: int = 1) -> FloatArray:
    """Excess of each context from its optimum on, averaged over the second half of the run; (replicates, contexts)."""
    start = LogitTable(language).optimum()
    plan = Constant(peak_lr=lr, steps=steps)
    (ds,) = trained(lab, language, [plan], lab.samples(128), start=start, every=math.ceil(steps / 80), batch=batch)
    return ds["context_excess"].values[..., ds["eval_step"].values >= steps // 2].mean(axis=-1)


@predicts(
    "P-BIGRAM.0",
    statement="curvature of a context at its optimum: its trace is the Gini impurity",
    formula="tr H_i = pi_i (1 - |p_i|^2); lambda_max = pi_i / k for uniform over k",
    source="derived",
    validity="logit table; eigenvalues of the dense Hessian",
    spans={"tokens": Span(8, 5, 12, "tokens K", whole=True), "peak": Span(0.5, 0.3, 0.9, "probability of one token")},
)
def curvature_of_contexts(p: Parameters, lab: Lab) -> list[Outcome]:
    tokens = int(p["tokens"])
    language = bigram_language({"peaked": likely(tokens, 1, p["peak"]), "uniform": likely(tokens, tokens)})
    dense = LogitTable(language).hessian(LogitTable(language).optimum())
    out, because = [], "rounding"
    for i, name in enumerate(language.contexts):
        block = dense[i * tokens : (i + 1) * tokens, i * tokens : (i + 1) * tokens]
        trace = float(language.pi[i]) * (1.0 - float(np.sum(language.p[i] ** 2)))
        found = float(np.sum(np.linalg.eigvalsh(block)))
        out.append(Outcome(f"trace, {name}", trace, found, 0.0, 1e-9, because))
    top = float(np.linalg.eigvalsh(block)[-1])
    return [*out, Outcome("largest eigenvalue, uniform", 0.5 / tokens, top, 0.0, 1e-9, because)]


@predicts(
    "P-BIGRAM.0b",
    statement="the largest curvature grows with the entropy of the next token",
    formula="lambda_max(uniform over K) > lambda_max(one token at q)",
    source="the loose reading of 'more uncertain is sharper'",
    validity="q from 0.3 to 0.8 of K >= 8 tokens, where it is wrong (K = 8, q = 0.5: 0.286 against 0.125)",
    spans={"tokens": Span(8, 8, 12, "tokens K", whole=True), "peak": Span(0.5, 0.3, 0.8, "probability q")},
    must_fail=True,
)
def largest_curvature_is_no_entropy(p: Parameters, lab: Lab) -> list[Outcome]:
    tokens = int(p["tokens"])
    language = bigram_language({"peaked": likely(tokens, 1, p["peak"]), "uniform": likely(tokens, tokens)})
    top = context_spectrum(language)[:, -1]
    assert language.entropy[1] > language.entropy[0]
    return [
        Outcome(
            "largest curvature of the uniform context minus the peaked one", 0.0, float(top[1] - top[0]), relation=">"
        )
    ]


@predicts(
    "P-BIGRAM.1",
    statement="stable excess loss of a context is its Gini impurity times eta/(4B), and ranks contexts as that does",
    formula="(eta / 4B)(1 - |p_i|^2) per occurrence",
    source="derived; uncertainty as curvature: 2410.05192",
    validity="eta pi lambda <= 0.05, many relaxation times, sampled batches",
    spans={"lr": Span(0.1, 0.05, 0.15, "eta"), "batch": Span(1, 1, 4, "batch B", whole=True)},
    slow=True,
)
def stable_excess_is_gini(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, batch = p["lr"], int(p["batch"])
    rows = {"one at 0.9": likely(8, 1, 0.9), "one at 0.5": likely(8, 1, 0.5), "uniform": likely(8, 8)}
    language = bigram_language(rows)
    found = settled_excess(lab, language, lr, round(800.0 / lr), batch)
    stated = bigram_theory.small_rate_excess(language, lr, batch)
    out = []
    for i, name in enumerate(language.contexts):
        told = (f"excess, {name}", float(stated[i]), *mean_and_error(found[:, i]))
        out.append(Outcome(*told, 0.03 * float(stated[i]), SMALL_RATE))
    return [
        *out,
        Outcome("Spearman with Gini impurity", 1.0, spearman(found.mean(axis=0), language.gini), 0.0, 1e-12, "a rank"),
    ]


@predicts(
    "P-BIGRAM.1b",
    statement="stable excess loss ranks contexts as their Shannon entropy does",
    formula="Spearman(excess, entropy) = 1",
    source="the loose reading of 'more uncertain is sharper'",
    validity="contexts whose orders by entropy and by Gini impurity differ, where it is wrong",
    spans={"lr": Span(0.1, 0.08, 0.12, "eta")},
    must_fail=True,
    slow=True,
)
def entropy_does_not_rank(p: Parameters, lab: Lab) -> list[Outcome]:
    # The first has the larger entropy (2.05 against 1.73 nat), the second the larger impurity (0.73 against 0.81).
    language = bigram_language({"one at 0.5": likely(16, 1, 0.5), "five at 0.98": likely(16, 5, 0.98)})
    assert language.entropy[0] > language.entropy[1]
    found = settled_excess(lab, language, p["lr"], 6000)
    gap = mean_and_error(found[:, 0] - found[:, 1])
    return [Outcome("excess of the context of more entropy minus the one of more impurity", 0.0, *gap, relation=">")]


@predicts(
    "P-BIGRAM.2",
    statement="a deterministic context has no floor: its excess falls as one over the sum of the rates",
    formula="(K - 1) / (K pi S)",
    source="derived",
    validity="pi S >= 100; next order ln(pi S) / (pi S)",
    spans={"area": Span(400, 200, 800, "pi S"), "tokens": Span(8, 3, 12, "tokens K", whole=True)},
)
def river_of_deterministic_contexts(p: Parameters, lab: Lab) -> list[Outcome]:
    tokens = int(p["tokens"])
    language = bigram_language({"certain": likely(tokens), "uniform": likely(tokens, tokens)})
    out, ends = [], []
    for lr, share in ((0.5, 1.0), (0.5, 0.5), (0.25, 1.0)):
        plan = Constant(peak_lr=lr, steps=round(2.0 * p["area"] * share / lr))  # pi = 1/2
        (ds,) = trained(lab, language, [plan], lab.samples(32), every=plan.total)
        area = plan.area()
        mean = mean_and_error(last_excess(ds)[:, 0])
        ends.append((area, *mean))
        tail = float(bigram_theory.tail_excess(tokens, 1, 0.5, area))
        small = 2.0 * math.log(area) / area * tokens / 4.0
        out.append(Outcome(f"excess at S = {area:g}, eta = {lr:g}", tail, *mean, small * tail, "next order"))
    (far, a, da), (near, b, db), (_, other, d_other) = ends
    slope = math.log(a / b) / math.log(far / near)
    error = math.hypot(da / a, db / b) / math.log(far / near)
    because = "next order in 1/S"
    return [
        *out,
        Outcome("exponent of S", -1.0, slope, error, 2.0 * math.log(near) / near * tokens / 4.0, because),
        Outcome(
            "half the rate over the full one at the same S",
            1.0,
            other / a,
            math.hypot(d_other / a, da / a),
            0.02,
            "finite updates at the start",
        ),
    ]


@predicts(
    "P-BIGRAM.3",
    statement="a cooldown lowers the excess of uncertain contexts by its hill factor and holds up deterministic ones",
    formula="R(1) of P-DECAY.1c at x = eta pi lambda T_d; sign of stable minus decayed: + uncertain, - deterministic",
    source="2410.05192 (stable learns the deterministic, decay the stochastic pairs); factor derived",
    validity="eta pi lambda <= 0.05; inverse decay to 0.1",
    spans={"lr": Span(0.1, 0.08, 0.15, "eta"), "x": Span(9.0, 6.0, 12.0, "eta pi lambda T_d of the uniform context")},
    slow=True,
)
def cooldown_by_context(p: Parameters, lab: Lab) -> list[Outcome]:
    lr, tokens = p["lr"], 8
    language = bigram_language({"certain": likely(tokens), "uniform": likely(tokens, tokens)})
    steps = round(p["x"] / (lr * 0.5 / tokens))
    total = 2 * steps + 1
    decay = WSD(peak_lr=lr, steps=total, cooldown=steps / total, shape=Inverse(floor=0.1))
    stable = Constant(peak_lr=lr, steps=total)
    decayed, continued = (
        last_excess(ds) for ds in trained(lab, language, [decay, stable], lab.samples(400), every=total)
    )
    factor = float(theory_decay.hill_ratio(Inverse(floor=0.1), p["x"]))
    hill = float(bigram_theory.small_rate_excess(language, lr)[1])
    told = "leading order in eta, as in P-BIGRAM.1"
    after = mean_and_error(decayed[:, 1] / hill)
    return [
        Outcome("uniform context: excess after over before", factor, *after, 0.05 * factor, told),
        Outcome(
            "uniform context: stable minus decayed", 0.0, *mean_and_error(continued[:, 1] - decayed[:, 1]), relation=">"
        ),
        Outcome(
            "deterministic context: stable minus decayed",
            0.0,
            *mean_and_error(continued[:, 0] - decayed[:, 0]),
            relation="<",
        ),
    ]


@predicts(
    "P-BIGRAM.4",
    statement="the best constant rate falls with the length of the run; with an optimal cooldown larger ones end lower",
    formula="eta* ~ 2 sqrt(A B / (G T)), A = C_det (K - 1)/K, G = sum_i pi_i Gini_i",
    source="derived",
    validity="one deterministic and one uniform context; tested at a third of and three times eta*",
    spans={"steps": Span(2000, 1000, 4000, "updates T", whole=True)},
    slow=True,
)
def best_constant_rate(p: Parameters, lab: Lab) -> list[Outcome]:
    language = bigram_language({"certain": likely(8), "uniform": likely(8, 8)})
    out = []
    for steps in (int(p["steps"]), 4 * int(p["steps"]))[: 2 if lab.thorough else 1]:
        best = bigram_theory.best_constant_rate(language, steps)
        plans: list[Schedule] = [Constant(peak_lr=best * times, steps=steps) for times in (1.0, 1 / 3, 3.0)]
        # All eigenvalues of the uniform context are pi/K, so the optimal cooldown of one is that of all.
        plans += [
            cooldown(None, best * times, 0.5 / 8.0, steps // 2, stable=steps - steps // 2) for times in (3.0, 10.0)
        ]
        replicates = max(lab.samples(200_000) // steps, 16)
        ends = [last_excess(ds) @ language.pi for ds in trained(lab, language, plans, replicates, every=steps)]
        for times, end in zip(("a third", "three times"), ends[1:3], strict=True):
            quantity = f"loss at the best rate minus at {times}, T = {steps}"
            out.append(Outcome(quantity, 0.0, *mean_and_error(ends[0] - end), relation="<"))
        # A loss a/eta + b eta with these two values is least at sqrt(a/b); in units of the predicted best rate.
        (low, d_low), (high, d_high) = mean_and_error(ends[1]), mean_and_error(ends[2])
        ratio = math.sqrt((9.0 * low - high) / (9.0 * high - low))
        error = 40.0 * math.hypot(high * d_low, low * d_high) / (ratio * (9.0 * high - low) ** 2)
        because = "next order in 1/(pi S), a part in ten"
        out.append(Outcome(f"best rate over the predicted, T = {steps}", 1.0, ratio, error, 0.1, because))
        quantity = f"with a cooldown: ten minus three times that rate, T = {steps}"
        out.append(Outcome(quantity, 0.0, *mean_and_error(ends[4] - ends[3]), relation="<"))
    return out


@predicts(
    "P-BIGRAM.5",
    statement="a context of frequency pi is learned from S ~ 1/pi on; each lacking token adds a dimension of river",
    formula="excess as a function of pi S alone; dimension sum_i (K - k_i)",
    source="derived",
    validity="gradient descent without noise, small eta",
    spans={"lr": Span(0.5, 0.1, 0.5, "eta"), "exponent": Span(1.0, 0.5, 1.5, "exponent of Zipf's law")},
)
def rare_contexts_come_later(p: Parameters, lab: Lab) -> list[Outcome]:
    rows = {f"city {i}": likely(8) for i in range(4)} | {"uniform": likely(8, 8)}
    language = bigram_language(rows, zipf=p["exponent"])
    steps = math.ceil(40.0 / (p["lr"] * float(language.pi.min())))
    plan = Constant(peak_lr=p["lr"], steps=steps)
    (ds,) = trained(lab, language, [plan], 1, noise="none", every=1)
    excess, areas = ds["context_excess"].values[0], p["lr"] * ds["eval_step"].values
    # Half of ln K is left at the same pi S in each context.
    halves = [float(np.interp(-0.5 * math.log(8.0), -excess[i], areas)) for i in range(4)]
    out = []
    for i in (1, 2, 3):
        ratio = float(language.pi[0] / language.pi[i])
        because = "finite updates"
        out.append(
            Outcome(
                f"S of context {i + 1} over that of the first",
                ratio,
                halves[i] / halves[0],
                0.0,
                0.1 * p["lr"] * ratio,
                because,
            )
        )
    mu = context_spectrum(language)
    flat = int(np.sum(mu < 1e-9))
    rivers = int(np.sum(bigram_theory.river_dimensions(language)))
    # Each context has one null direction besides, the shift of all its logits, which the spectrum leaves out.
    return [*out, Outcome("flat directions at the optimum", float(rivers), float(flat), 0.0, 1e-9, "a count")]
