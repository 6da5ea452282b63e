"""Where the stable phase and the cooldown gain: held-out losses of tokens and images, by how predictable they are.

The claim that this sets numbers against (arXiv:2410.05192): what is certain is learnt along the river, in the stable
phase; the cooldown improves mainly what is uncertain. `riverval.toy.bigram` derives it for a bigram language. A run
cannot confirm it by rising gains alone: compare each gain with its own null, and the two phases by `gain_contrast`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .._typing import FloatArray, IntArray
from ..errors import InputError
from ..hessian import LossOnBatches
from .data import Batch
from .ngrams import NGrams
from .predictability import (
    Stations,
    contrast,
    group_means,
    quantile_bins,
    shuffled_groups,
    shuffled_slope,
    slope,
    stations,
)
from .probes import Context, Skipped, Values, register
from .text import Text

NGRAM_ORDER = {"bytes": 5, "bpe": 3}
NGRAM_TOKENS = 1 << 25  # the n-gram model is counted on so many training tokens, the first
LOGITS = 1 << 25  # of one batch: 128 MB, and as much for each of a few copies


@register("predictability")
def predictability(context: Context) -> Values:
    """Held-out loss in bins of predictability at a few states, and each bin's gain in the stable phase and cooldown.

    The states are those of `stations`: both ends of the last stable phase and of the last cooldown, and a few between.
    A gain is the fall of the loss over a phase; ``settled_gain`` is that over the second half of the stable phase. Bins
    hold equal shares of the tokens or images by a reference entropy that no state at the end of a gain enters (see
    `riverval.experiments.predictability` on regression to the mean):

    - text: of an n-gram model of the training text (`NGrams`; order 5 for bytes, 3 for bpe). Besides, as ``model_bin``,
      of the model itself.
    - images: of the model itself, as its predictive entropy averaged over two states within the stable phase. Besides,
      as ``class``, by class.

    Null of a gain: the same gain in every bin, as an exact mean and standard deviation over all ways to shuffle the
    sequences (or images) against the bins (`shuffled`). That a gain rises with entropy is weak evidence: what is
    certain has no loss left to lose. ``gain_contrast`` compares the cooldown with the second half of the stable phase
    (see `contrast`); its null is 0.

    Errors are over the held-out subset of ``config.token_examples``; the noise of the trajectory shows over seeds only.
    """
    plan = _stations(context)
    seen = _measured(context, plan.states)
    out: Values = {"probe_step": list(plan.states)}
    for name, (start, stop) in plan.gains.items():
        out |= {f"{name}_gain_start": start, f"{name}_gain_stop": stop}
    within = _within(context, plan, seen)
    if isinstance(context.data, Text):
        out |= _by_ngrams(context, context.data, plan, seen)
        if within is not None:
            out |= _binned("model_bin", "model_", plan, seen, within)
    elif within is None:
        raise Skipped("no state within the stable phase or the cooldown was kept, to make bins by")
    else:
        out |= _binned("bin", "", plan, seen, within) | _contrasted(plan, seen, within)
        out["bin_reference"] = "model at states " + ", ".join(map(str, plan.reference))
        out["class"], labels = np.unique(seen.targets, return_inverse=True)
        out |= _grouped("class", "class_", plan, seen, labels.reshape(seen.targets.shape), within)
    return out


@dataclass(frozen=True)
class _Seen:
    """Losses and entropies of the model, (states, sequences, length), and the sequences: (sequences, length)."""

    losses: FloatArray
    entropies: FloatArray
    inputs: IntArray  # of text
    targets: IntArray


def _stations(context: Context) -> Stations:
    kept = context.states
    whole = set(kept.get("predictability", ()))  # of others there may be only a sketch
    plan = stations({name: [t for t in kept.get(name, ()) if t in whole] for name in ("stable", "cooldown")})
    context.lacking("predictability", plan.gains)
    return plan


def _measured(context: Context, states: tuple[int, ...]) -> _Seen:
    """The model at each state on the same held-out examples."""
    config, batches = context.config, _batches(context)
    function = LossOnBatches(context.model, config.architecture.loss, batches)
    losses, entropies = [], []
    for state in states:
        context.tell(f"measuring predictability at state {state}")
        values = list(function.pieces(context.snapshots.load(state, context.model)).values())
        with torch.no_grad():
            parts = [function.evaluate(config.architecture.elementwise, values, k) for k in range(len(batches))]
        losses.append(_joined([loss for loss, _ in parts]))
        entropies.append(_joined([entropy for _, entropy in parts]))
    if not np.isfinite(losses).all():
        raise Skipped("a held-out loss is not finite")
    inputs = [x for x, _ in batches] if isinstance(context.data, Text) else []
    targets = _joined([y for _, y in batches]).astype(np.int64)
    found = _joined(inputs).astype(np.int64) if inputs else np.zeros((0, 1), dtype=np.int64)
    return _Seen(np.stack(losses), np.stack(entropies), found, targets)


def _batches(context: Context) -> Sequence[Batch]:
    config = context.config
    if isinstance(context.data, Text):
        per_sequence = int(config.seq or 1) * int(context.data.facts["vocab"])
        return context.data.fixed("val", config.token_examples, per_batch=max(1, LOGITS // per_sequence))
    return context.data.fixed("val", config.token_examples)


def _joined(parts: list[torch.Tensor]) -> FloatArray:
    """(sequences, length) in float64; images are sequences of length 1."""
    whole = torch.cat([part.detach().cpu() for part in parts]).double().numpy()
    return whole.reshape(len(whole), -1)


# --- references ------------------------------------------------------------------------------------------------------
def _within(context: Context, plan: Stations, seen: _Seen) -> FloatArray | None:
    """The model's entropy averaged over the reference states; None, with a note, where there is none."""
    if not plan.reference:
        context.notes.append("predictability: no state within a phase to take the model's entropy from; more snapshots")
        return None
    return np.asarray(seen.entropies[[plan.states.index(state) for state in plan.reference]].mean(axis=0))


def _by_ngrams(context: Context, data: Text, plan: Stations, seen: _Seen) -> Values:
    order, vocab = NGRAM_ORDER[str(context.config.tokenizer)], int(data.facts["vocab"])
    context.tell(f"measuring predictability: counting {order}-grams")
    model = NGrams(data.tokens("train", NGRAM_TOKENS), seen.inputs, order=order, vocab=vocab)
    entropy, loss = model.entropy(), model.loss(seen.targets)
    mean, error = group_means(np.zeros(loss.shape, dtype=np.int64), loss)
    out = _binned("bin", "", plan, seen, entropy) | _contrasted(plan, seen, entropy)
    return out | {
        "bin_reference": f"{order}-grams of the training text",
        "bin_ngram_loss": group_means(quantile_bins(entropy), loss)[0],
        "ngram_loss": mean[0], "ngram_loss_error": error[0], "ngram_entropy": entropy.mean(),
    }  # fmt: skip


# --- stored values ---------------------------------------------------------------------------------------------------
def _binned(of: str, gains: str, plan: Stations, seen: _Seen, reference: FloatArray) -> Values:
    """Bins by the reference, and the slopes of the gains on it."""
    try:
        labels = quantile_bins(reference)
    except InputError as error:
        raise Skipped(f"{error}; raise token_examples") from error
    out: Values = {"predictability_bin" if of == "bin" else of: np.arange(labels.max() + 1)}
    out |= _grouped(of, gains, plan, seen, labels, reference)
    for name, gain in _gains(plan, seen).items():
        values = (*slope(reference, gain), *shuffled_slope(reference, gain))
        out |= _with_null(f"{gains}{name}_gain_slope", values)
    return out


def _grouped(of: str, gains: str, plan: Stations, seen: _Seen, labels: IntArray, reference: FloatArray) -> Values:
    """Shares, entropies, losses and gains of groups; `of` and `gains` are what their names start with."""
    found = [group_means(labels, loss) for loss in seen.losses]
    out: Values = {
        f"{of}_entropy": group_means(labels, reference)[0],
        f"{of}_share": np.bincount(labels.ravel()) / labels.size,
        f"{of}_loss": np.stack([mean for mean, _ in found]),
        f"{of}_loss_error": np.stack([error for _, error in found]),
        f"{of}_model_entropy": np.stack([group_means(labels, entropy)[0] for entropy in seen.entropies]),
    }
    for name, gain in _gains(plan, seen).items():
        out |= _with_null(f"{gains}{name}_gain", (*group_means(labels, gain), *shuffled_groups(labels, gain)))
    return out


def _contrasted(plan: Stations, seen: _Seen, reference: FloatArray) -> Values:
    gains = _gains(plan, seen)
    if not {"settled", "cooldown"} <= set(gains):
        return {}
    value, error = contrast(reference, gains["settled"], gains["cooldown"])
    return {"gain_contrast": value, "gain_contrast_error": error}


def _gains(plan: Stations, seen: _Seen) -> dict[str, FloatArray]:
    at = dict(zip(plan.states, seen.losses, strict=True))
    return {name: at[start] - at[stop] for name, (start, stop) in plan.gains.items()}


def _with_null(name: str, values: tuple[object, ...]) -> Values:
    return dict(zip((name, f"{name}_error", f"{name}_null", f"{name}_null_std"), values, strict=True))
