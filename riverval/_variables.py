"""What a dataset may hold: every stored name with its dimensions, units and meaning, as tables.

See `riverval.schema`, which builds and validates datasets by them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """What a stored name means; `dims` lists every allowed tuple of dimensions, `dtype` is one of `DTYPES`."""

    long_name: str
    units: str
    dims: tuple[tuple[str, ...], ...]
    dtype: str = "f8"


_RUNS = (("eval_step",), ("replicate", "eval_step"))
_PER_RUN: tuple[tuple[str, ...], ...] = ((), ("replicate",))
_CONTEXT_RUNS = (("replicate", "context", "eval_step"),)
_CURVES = (("eval_step",), ("plan", "eval_step"), ("rate", "eval_step"))
_CHECKPOINTS = (("accounting", "family", "checkpoint"),)
_FINAL = (("rate", "total"),)
_ENDINGS = (("valley", "ending", "length"),)
_SURFACE = (("along", "across"),)

COORDS: dict[str, Variable] = {
    "source": Variable("where the numbers come from: theory, toy or real", "1", ((),), "str"),
    "step": Variable("number of the update, 0-based", "1", (("step",),), "i8"),
    "lr": Variable("learning rate used by the update", "1", (("step",),)),
    "phase": Variable("phase of the schedule", "1", (("step",),), "i1"),
    "eval_step": Variable("updates made before the evaluated state", "1", (("eval_step",),), "i8"),
    "probe_step": Variable("updates made before the probed state", "1", (("probe_step",),), "i8"),
    "replicate": Variable("number of the independent repetition", "1", (("replicate",),), "i8"),
    "mode": Variable("number of the hill direction", "1", (("mode",),), "i8"),
    "alpha": Variable("place between the two ends, 0 at the first", "1", (("alpha",),)),
    "pair": Variable("pair of states that is interpolated", "1", (("pair",),), "str"),
    "window": Variable("phase that the snapshots come from", "1", (("window",),), "str"),
    "component": Variable("principal component, largest first", "1", (("component",),), "i8"),
    "window_pair": Variable("two windows whose first components are compared", "1", (("window_pair",),), "str"),
    "rank": Variable("number of the eigenvalue, largest first", "1", (("rank",),), "i8"),
    "group": Variable("number of the optimizer's parameter group", "1", (("group",),), "i8"),
    "sketch": Variable("entry of the sketch of a parameter vector", "1", (("sketch",),), "i8"),
    "diagnostic": Variable("name of the diagnostic", "1", (("diagnostic",),), "str"),
    "context": Variable("context whose next token is predicted", "1", (("context",),), "str"),
    "quantile": Variable("quantile over the replicates", "1", (("quantile",),)),
    "prediction": Variable("prediction that the row measures, one of several rows", "1", (("prediction",),), "str"),
    # Landscapes.
    "batch": Variable("number of the fixed batch that the loss is evaluated on", "1", (("batch",),), "i8"),
    "test": Variable("test of the shape of a line", "1", (("test",),), "str"),
    "point": Variable("number of the point, in the order given", "1", (("point",),), "i8"),
    "plane_x": Variable("first coordinate in the plane, in units of its axis", "1", (("plane_x",),)),
    "plane_y": Variable("second coordinate in the plane, in units of its axis", "1", (("plane_y",),)),
    "direction": Variable("direction of the cross-section", "1", (("direction",),), "str"),
    "offset": Variable("place on the cross-section as a share of its reach", "1", (("offset",),)),
    "eigenvalue": Variable("place on the axis of the eigenvalues", "1", (("eigenvalue",),)),
    # Losses of single tokens and images.
    "predictability_bin": Variable(
        "number of the bin of tokens or images, by the entropy of a reference from the least",
        "1",
        (("predictability_bin",),),
        "i8",
    ),
    "model_bin": Variable(
        "number of the bin of tokens, by the model's own entropy from the least", "1", (("model_bin",),), "i8"
    ),
    "class": Variable("class of the image", "1", (("class",),), "i8"),
    # Studies, which hold several runs against each other.
    "along": Variable("place along the river, as a coordinate of the surface", "1", (("along",),)),
    "across": Variable("height above the valley floor, as a coordinate of the surface", "1", (("across",),)),
    "plan": Variable("schedule, among several", "1", (("plan",),), "str"),
    "family": Variable("kind of schedule that makes several decayed checkpoints", "1", (("family",),), "str"),
    "accounting": Variable("cost that is equal for the schedules compared", "1", (("accounting",),), "str"),
    "seed": Variable("seed of the run: of its initial weights and its batches", "1", (("seed",),), "i8"),
    "criterion": Variable("acceptance test of a reproduction", "1", (("criterion",),), "str"),
    "metric": Variable("what is compared of finished runs", "1", (("metric",),), "str"),
    "checkpoint": Variable("number of the decayed checkpoint, from 1", "1", (("checkpoint",),), "i8"),
    "rate": Variable("peak learning rate, among several", "1", (("rate",),)),
    "total": Variable("updates of the whole run, among several", "1", (("total",),), "i8"),
    "decay": Variable("decay shape, or optimal: the decay that leaves the least hill loss", "1", (("decay",),), "str"),
    "floor": Variable("rate at the end of the cooldown as a fraction of the peak", "1", (("floor",),)),
    "relaxations": Variable("length of the cooldown as lr times curvature times updates", "1", (("relaxations",),)),
    "probe_relaxations": Variable("length of a simulated cooldown in relaxation times", "1", (("probe_relaxations",),)),
    "crossing": Variable("two decay shapes whose order changes", "1", (("crossing",),), "str"),
    "valley": Variable("kind of valley", "1", (("valley",),), "str"),
    "fraction": Variable("updates of the cooldown as a fraction of the run", "1", (("fraction",),)),
    "probe_fraction": Variable("updates of a simulated cooldown as a fraction of the run", "1", (("probe_fraction",),)),
    "ending": Variable("what is done with the last updates", "1", (("ending",),), "str"),
    "length": Variable("updates of the cooldown or of the averaging window", "1", (("length",),), "i8"),
}

_STATE: tuple[tuple[str, ...], ...] = (("probe_step",),)
_SPECTRUM = (("probe_step", "rank"),)
_SKETCHES = (("probe_step", "sketch"),)
_DIAGNOSTICS = (("probe_step", "diagnostic"),)


_GAINS = {
    "stable_gain": "last stable phase",
    "settled_gain": "second half of the last stable phase",
    "cooldown_gain": "last cooldown",
}


def _grouped(of: str, axis: str, what: str, gains: str) -> dict[str, Variable]:
    """What is stored of tokens or images in groups, and of what each group gained in two phases."""
    each = ((axis,),)
    out = {
        f"{of}_entropy": Variable(f"mean reference entropy of the {what}", "nat", each),
        f"{of}_share": Variable(f"share of all tokens or images that is the {what}", "1", each),
        f"{of}_loss": Variable(f"held-out loss of the {what}", "nat", (("probe_step", axis),)),
        f"{of}_loss_error": Variable(
            f"standard error of the loss of the {what}, over sequences or images", "nat", (("probe_step", axis),)
        ),
        f"{of}_model_entropy": Variable(
            f"mean entropy of the model's predictions for the {what}", "nat", (("probe_step", axis),)
        ),
    }
    for name, phase in _GAINS.items():
        gain = f"fall of the held-out loss of the {what} over the {phase}"
        out |= {
            f"{gains}{name}": Variable(gain, "nat", each),
            f"{gains}{name}_error": Variable(f"standard error of the {gain}", "nat", each),
            f"{gains}{name}_null": Variable(f"mean of the {gain}, members shuffled over groups", "nat", each),
            f"{gains}{name}_null_std": Variable(f"standard deviation of the same shuffled {gain}", "nat", each),
        }
        if axis == "class":
            continue
        slope = f"rise of the {gain} with the reference entropy"
        out |= {
            f"{gains}{name}_slope": Variable(slope, "1", ((),)),
            f"{gains}{name}_slope_error": Variable(f"standard error of the {slope}", "1", ((),)),
            f"{gains}{name}_slope_null": Variable(f"mean of the {slope}, tokens or images shuffled", "1", ((),)),
            f"{gains}{name}_slope_null_std": Variable(f"standard deviation of the same shuffled {slope}", "1", ((),)),
        }
    return out


# Losses of single tokens and images in groups; see `riverval.experiments.probe_predictability`.
_PREDICTABILITY: dict[str, Variable] = {
    **_grouped("bin", "predictability_bin", "bin", ""),
    **_grouped("model_bin", "model_bin", "bin by the model's entropy", "model_"),
    **_grouped("class", "class", "class", "class_"),
    **{
        f"{name}_start": Variable(f"first state of the gain over the {of}", "1", ((),), "i8")
        for name, of in _GAINS.items()
    },
    **{
        f"{name}_stop": Variable(f"last state of the gain over the {of}", "1", ((),), "i8")
        for name, of in _GAINS.items()
    },
    "bin_reference": Variable("what measures the entropy that the bins are made by", "1", ((),), "str"),
    "bin_ngram_loss": Variable("held-out loss of the n-gram reference in the bin", "nat", (("predictability_bin",),)),
    "gain_contrast": Variable(
        "relative rise with the reference entropy of the cooldown's gain, minus that of the settled stable phase's",
        "1",
        ((),),
    ),
    "gain_contrast_error": Variable("standard error of that difference", "1", ((),)),
    "ngram_loss": Variable("held-out loss of the n-gram reference", "nat", ((),)),
    "ngram_loss_error": Variable("standard error of the n-gram's loss, over sequences", "nat", ((),)),
    "ngram_entropy": Variable("mean entropy of the n-gram reference's predictions, held out", "nat", ((),)),
}

# What an observer measures at a state, each beside its null; see `riverval.diagnostics`.
_PROBES: dict[str, Variable] = {
    "probe_status": Variable("what became of the diagnostic at the state", "1", _DIAGNOSTICS, "i1"),
    "probe_seconds": Variable("time that the diagnostic took at the state", "s", _DIAGNOSTICS),
    "diagnostic_share": Variable("time of the diagnostic as a share of the run's", "1", (("diagnostic",),)),
    "run_seconds": Variable("time of the run, its diagnostics included", "s", ((),)),
    "record_seconds": Variable("time spent on the records of every update", "s", ((),)),
    "probe_loss": Variable("loss on the probe's batches", "1", _STATE),
    "probe_loss_error": Variable("standard error of the probe's loss over its batches, nan for one", "1", _STATE),
    "hessian_top_bound": Variable("bound on the error of the largest eigenvalue", "1", _STATE),
    "hessian_mean": Variable("curvature of a random direction, Tr H / dim: null of hessian_top", "1", _STATE),
    "hessian_mean_error": Variable("bound on the standard error of the curvature of a random direction", "1", _STATE),
    "hessian_threshold": Variable(
        "curvature above which the optimizer is unstable on a quadratic; of one that preconditions: gradient descent",
        "1",
        _STATE,
    ),
    "preconditioned_top": Variable("largest eigenvalue of the Hessian preconditioned by the optimizer", "1", _STATE),
    "preconditioned_top_residual": Variable("norm of its residual: some eigenvalue is this near", "1", _STATE),
    "preconditioned_top_bound": Variable("bound on the error of the preconditioned eigenvalue", "1", _STATE),
    "preconditioned_products": Variable("products spent on it", "1", _STATE, "i8"),
    "preconditioned_mean": Variable("preconditioned curvature of a random direction: its null", "1", _STATE),
    "preconditioned_mean_error": Variable("bound on the standard error of that curvature", "1", _STATE),
    "preconditioned_threshold": Variable(
        "preconditioned curvature above which the optimizer is unstable on a quadratic", "1", _STATE
    ),
    "hessian_eigenvalue": Variable("eigenvalues of the Hessian from the largest down", "1", _SPECTRUM),
    "hessian_eigenvalue_residual": Variable("norms of H v - lambda v", "1", _SPECTRUM),
    "hessian_eigenvalue_null": Variable("curvature of a random direction: null of the eigenvalues", "1", _STATE),
    "hessian_eigenvalue_null_error": Variable("bound on the standard error of that curvature", "1", _STATE),
    "hessian_batch_mean": Variable("mean over disjoint batches of the largest eigenvalue", "1", _STATE),
    "hessian_batch_error": Variable("standard error of that mean", "1", _STATE),
    "critical_sharpness": Variable("2 over the smallest rate at which the next update raises the loss", "1", _STATE),
    "critical_passes": Variable("forward passes spent on the critical sharpness", "1", _STATE, "i8"),
    "critical_null": Variable("the same if the curvature were that of a random direction", "1", _STATE),
    "critical_threshold": Variable("2 over the rate used: the update is beyond critical above it", "1", _STATE),
    "gradient_cosine": Variable("cosine of the next update and minus the probe's gradient", "1", _STATE),
    "gradient_cosine_null": Variable("mean of the same for the gradient's entries shuffled", "1", _STATE),
    "gradient_cosine_null_std": Variable("standard deviation of the same", "1", _STATE),
    "hessian_trace": Variable("trace of the Hessian", "1", _STATE),
    "hessian_trace_error": Variable("standard error of the trace", "1", _STATE),
    "hessian_trace_null_std": Variable(
        "standard deviation of the trace of a random matrix of the same norm, whose mean is 0", "1", _STATE
    ),
    "probe_sketch": Variable("sketch of the parameters", "1", _SKETCHES),
    "probe_gradient_sketch": Variable("sketch of the probe's gradient", "1", _SKETCHES),
    "probe_gradient_norm": Variable("norm of the probe's gradient", "1", _STATE),
    "probe_gradient_null": Variable("norm that the noise between batches alone gives the gradient", "1", _STATE),
    "quasi_convexity": Variable("weak quasi-convexity tau towards the last state: a ratio", "1", _STATE),
    "quasi_convexity_numerator": Variable("inner product of gradient and way from the last state", "1", _STATE),
    "quasi_convexity_denominator": Variable("loss minus that of the last state", "1", _STATE),
    "quasi_convexity_error": Variable("standard error of tau, from the sketches", "1", _STATE),
    "quasi_convexity_null_std": Variable(
        "standard deviation of tau towards a random point at the same distance, its mean is 0", "1", _STATE
    ),
    "quasi_convexity_average": Variable(
        "weak quasi-convexity tau towards the average of the cooldown's snapshots", "1", _STATE
    ),
    "quasi_convexity_average_null_std": Variable(
        "standard deviation of the same towards a random point as far away, its mean is 0", "1", _STATE
    ),
    "quasi_convexity_stable_average": Variable(
        "weak quasi-convexity tau towards the average of the late stable snapshots", "1", _STATE
    ),
    "quasi_convexity_stable_average_null_std": Variable(
        "standard deviation of the same towards a random point as far away, its mean is 0", "1", _STATE
    ),
}

_LINE = (("alpha",),)
_TEST = (("test",),)
_PLANE = (("plane_x", "plane_y"),)
_POINT = (("point",),)
_SECTION = (("direction", "offset"),)

# Losses on fixed batches along lines, on planes and through valleys; see `riverval.landscape_data`.
_LANDSCAPES: dict[str, Variable] = {
    "batch_weight": Variable("share of the batch in the loss", "1", (("batch",),)),
    "line_loss": Variable("loss at the place on the path", "1", _LINE),
    "line_loss_error": Variable("standard error of the loss at the place, over batches", "1", _LINE),
    "line_batch_loss": Variable("loss of one batch at the place", "1", (("batch", "alpha"),)),
    "line_distance": Variable("arc length from the first point, in parameter units", "1", _LINE),
    "line_null": Variable("loss at the place in a quadratic with the same ends and curvature", "1", _LINE),
    "line_knot": Variable("place on the path of the points that it goes through", "1", _POINT),
    "line_test_estimate": Variable("contrast that the test is about", "1", _TEST),
    "line_test_error": Variable("standard error of the contrast, over batches", "1", _TEST),
    "line_test_low": Variable("lower end of the simultaneous interval of the contrast", "1", _TEST),
    "line_test_high": Variable("upper end of the simultaneous interval of the contrast", "1", _TEST),
    "line_test_alpha": Variable("place on the path of the contrast", "1", _TEST),
    "line_test_p": Variable("p-value of the null hypothesis, corrected for all places", "1", _TEST),
    "line_test_verdict": Variable("verdict at the level in the configuration", "1", _TEST, "str"),
    "line_test_null": Variable("null hypothesis, and what a quadratic shows", "1", _TEST, "str"),
    "plane_loss": Variable("loss in the plane", "1", _PLANE),
    "plane_loss_error": Variable("standard error of the loss in the plane, over batches", "1", _PLANE),
    "plane_unit_x": Variable("length of one unit of the first coordinate, in parameter units", "1", ((),)),
    "plane_unit_y": Variable("length of one unit of the second coordinate, in parameter units", "1", ((),)),
    "plane_cosine": Variable("cosine of the angle between the two axes", "1", ((),)),
    "plane_point_x": Variable("first coordinate of the point's projection", "1", _POINT),
    "plane_point_y": Variable("second coordinate of the point's projection", "1", _POINT),
    "plane_point_off": Variable("distance of the point from the plane, in parameter units", "1", _POINT),
    "plane_point_loss": Variable("loss of the point itself", "1", _POINT),
    "plane_point_projected": Variable("loss of the point's projection onto the plane", "1", _POINT),
    "plane_point_gap": Variable("loss of the point minus that of its projection", "1", _POINT),
    "plane_point_gap_error": Variable("standard error of the gap, paired over batches", "1", _POINT),
    "plane_point_state": Variable("updates made before the point's state", "1", _POINT, "i8"),
    "section_loss": Variable("loss on the cross-section", "1", _SECTION),
    "section_rise_error": Variable("standard error of the loss minus that in the middle, paired", "1", _SECTION),
    "section_distance": Variable("distance from the middle, in parameter units", "1", _SECTION),
    "section_predicted": Variable("loss by the quadratic with the slope and curvature in the middle", "1", _SECTION),
    "section_curvature": Variable("curvature along the direction in the middle", "1", (("direction",),)),
    "density": Variable("density of the eigenvalues, smoothed by density_width", "1", (("eigenvalue",),)),
    "density_error": Variable("standard error of the density over probe vectors", "1", (("eigenvalue",),)),
    "density_null": Variable(
        "density of a random symmetric matrix of the same trace and norm, smoothed alike", "1", (("eigenvalue",),)
    ),
    "density_width": Variable("standard deviation of the Gaussian that smooths the density", "1", ((),)),
    "section_slope": Variable("slope of the loss along the direction in the middle", "1", (("direction",),)),
}

_EVALUATED: tuple[tuple[str, ...], ...] = (("eval_step",), ("seed", "plan", "eval_step"))
_PLAN = (("plan",),)
_OUTCOME = (("plan", "metric"),)
_METRIC = (("metric",),)
_CRITERION = (("plan", "criterion"),)

# Studies of real runs: cells are plans at seeds, and differences are between plans at equal seeds; see
# `riverval.experiments.study_data`.
_CELLS: dict[str, Variable] = {
    "plan_against": Variable("plan that the plan is compared with, itself where there is none", "1", _PLAN, "str"),
    "plan_arch": Variable("architecture of the plan", "1", _PLAN, "str"),
    "plan_schedule": Variable("schedule of the plan", "1", _PLAN, "str"),
    "plan_shape": Variable("decay shape of the plan's last cooldown", "1", _PLAN, "str"),
    "plan_updates": Variable("updates of the plan", "1", _PLAN, "i8"),
    "plan_warmup": Variable("updates of the plan's warmup", "1", _PLAN, "i8"),
    "plan_cooldown": Variable("updates of the plan's last cooldown as a fraction of its run", "1", _PLAN),
    "plan_peak": Variable("peak learning rate of the plan", "1", _PLAN),
    "plan_batch": Variable("images or sequences per update", "1", _PLAN, "i8"),
    "plan_width": Variable("factor of all hidden widths", "1", _PLAN),
    "plan_parameters": Variable("trainable parameters", "1", _PLAN, "i8"),
    "cell_status": Variable("what became of the plan at the seed", "1", (("seed", "plan"),), "str"),
    "cell_key": Variable("hash of the cell's configuration: the name of its folder", "1", (("seed", "plan"),), "str"),
    "outcome": Variable("value of the metric in its own units, losses in nat", "1", (("seed", "plan", "metric"),)),
    "outcome_mean": Variable("mean of the metric over seeds", "1", _OUTCOME),
    "outcome_error": Variable("standard error of that mean", "1", _OUTCOME),
    "outcome_seeds": Variable("number of seeds in the mean", "1", _OUTCOME, "i8"),
    "outcome_gap": Variable("mean over seeds of the metric minus that of the reference plan", "1", _OUTCOME),
    "outcome_gap_error": Variable("standard error of the gap, from the differences at equal seeds", "1", _OUTCOME),
    "outcome_gap_low": Variable("lower end of the gap's 95 % interval (t distribution)", "1", _OUTCOME),
    "outcome_gap_high": Variable("upper end of the gap's 95 % interval (t distribution)", "1", _OUTCOME),
    "match_fraction": Variable("shortest cooldown, as a fraction of the run, that matches the reference", "1", _METRIC),
    "match_fraction_error": Variable("standard error of that fraction over seeds", "1", _METRIC),
    "match_fraction_low": Variable("lower end of that fraction's 95 % interval (t distribution)", "1", _METRIC),
    "match_fraction_high": Variable("upper end of that fraction's 95 % interval (t distribution)", "1", _METRIC),
    "match_fraction_seed": Variable("the same fraction of each seed, nan where none", "1", (("seed", "metric"),)),
    "best_plan": Variable("plan of the lowest mean", "1", _METRIC, "str"),
    "checkpoint_seed_loss": Variable(
        "loss of the checkpoint at each seed", "1", (("accounting", "family", "checkpoint", "seed"),)
    ),
    "criterion_value": Variable("what the acceptance test measures, over seeds", "1", _CRITERION),
    "criterion_error": Variable("standard error of that value over seeds", "1", _CRITERION),
    "criterion_low": Variable("lower end of that value's 95 % interval", "1", _CRITERION),
    "criterion_high": Variable("upper end of that value's 95 % interval", "1", _CRITERION),
    "criterion_null": Variable("value of the acceptance test if there were nothing to find", "1", _CRITERION),
    "criterion_bound": Variable("value that the acceptance test compares with", "1", _CRITERION),
    "criterion_verdict": Variable("verdict of the acceptance test over seeds", "1", _CRITERION, "str"),
    "criterion_held": Variable("seeds of which the acceptance test holds by itself", "1", _CRITERION, "i8"),
    "criterion_seed_value": Variable(
        "what the acceptance test measures of each seed", "1", (("seed", "plan", "criterion"),)
    ),
    "gain_rate_exponent": Variable("power of the peak rate in the gain of the cooldown", "1", ((),)),
    "gain_rate_exponent_error": Variable("standard error of that power over seeds", "1", ((),)),
    "gain_batch_exponent": Variable("power of the batch in the gain of the cooldown", "1", ((),)),
    "gain_batch_exponent_error": Variable("standard error of that power over seeds", "1", ((),)),
    "hill_rate_exponent": Variable("power of the peak rate in that gain beyond the river's", "1", ((),)),
    "hill_rate_exponent_error": Variable("standard error of that power over seeds", "1", ((),)),
    "hill_batch_exponent": Variable("power of the batch in that gain beyond the river's", "1", ((),)),
    "hill_batch_exponent_error": Variable("standard error of that power over seeds", "1", ((),)),
    "gain_batch_exponent_expected": Variable(
        "the same power for noise on a quadratic at small rates: -1 for SGD, -1/2 for Adam", "1", ((),)
    ),
    "study_updates": Variable("updates of all cells, each from its beginning", "1", ((),), "i8"),
    "study_shared_updates": Variable("updates of all cells, shared paths once", "1", ((),), "i8"),
}

VARIABLES: dict[str, Variable] = {
    **_CELLS,
    # Analytic valleys: simulated, and exact beside it; see also below.
    "loss": Variable("loss of the state, without gradient noise", "1", _RUNS),
    "river": Variable("river component of the loss: loss of the state's projection onto the river", "1", _RUNS),
    "hill": Variable("hill component of the loss: loss minus river component", "1", _RUNS),
    "curvature": Variable("curvature of the hill direction", "1", (("mode",),)),
    # Bigram languages: excess is the loss in a context minus the entropy of its next token.
    "context_excess": Variable("excess loss per occurrence of the context", "nat", _CONTEXT_RUNS),
    "context_continued": Variable(
        "excess loss where the rate stays as before the last cooldown, on the same batches", "nat", _CONTEXT_RUNS
    ),
    "context_expected": Variable(
        "excess loss of training without noise plus the linear theory of its noise", "nat", (("context", "eval_step"),)
    ),
    "context_frequency": Variable("probability of the context", "1", (("context",),)),
    "context_gini": Variable("Gini impurity of the next token: trace of its Hessian", "1", (("context",),)),
    "context_entropy": Variable("entropy of the next token", "nat", (("context",),)),
    "context_sharpness": Variable("largest curvature of the loss in the context, at the optimum", "1", (("context",),)),
    # Predictions of the theory, one row for each number.
    "prediction_quantity": Variable("what is predicted and measured", "1", (("prediction",),), "str"),
    "prediction_statement": Variable("the prediction in words", "1", (("prediction",),), "str"),
    "prediction_source": Variable("where the prediction comes from", "1", (("prediction",),), "str"),
    "prediction_relation": Variable("how measured relates to theory if it holds", "1", (("prediction",),), "str"),
    "prediction_theory": Variable("value by the theory, or bound", "1", (("prediction",),)),
    "prediction_measured": Variable("measured value", "1", (("prediction",),)),
    "prediction_error": Variable("standard error of the measured value, 0 if not random", "1", (("prediction",),)),
    "prediction_allowance": Variable("deviation allowed besides, fixed beforehand", "1", (("prediction",),)),
    "prediction_z": Variable("deviation in standard errors, nan if not random", "1", (("prediction",),)),
    "prediction_verdict": Variable("verdict by the rule fixed beforehand", "1", (("prediction",),), "str"),
    "prediction_must_fail": Variable("1 where the theory says that the statement fails", "1", (("prediction",),), "i1"),
    # Studies: means over replicates with their standard errors, and the theory beside them.
    "path_x": Variable("river coordinate of one replicate", "1", (("eval_step",),)),
    "path_y": Variable("hill coordinate of one replicate", "1", (("eval_step",),)),
    "path_loss": Variable("loss of one replicate", "1", (("eval_step",),)),
    "path_river": Variable("river component of the loss of one replicate", "1", (("eval_step",),)),
    "path_hill": Variable("hill component of the loss of one replicate", "1", (("eval_step",),)),
    "surface_y": Variable("hill coordinate of the surface", "1", _SURFACE),
    "surface_loss": Variable("loss of the surface", "1", _SURFACE),
    "loss_quantile": Variable("quantile of the loss over replicates", "1", (("quantile", "eval_step"),)),
    "river_quantile": Variable("quantile of the river component over replicates", "1", (("quantile", "eval_step"),)),
    "hill_quantile": Variable("quantile of the hill component over replicates", "1", (("quantile", "eval_step"),)),
    "mean_loss": Variable("mean loss over replicates", "1", _CURVES),
    "mean_loss_error": Variable("standard error of the mean loss", "1", _CURVES),
    "mean_river": Variable("mean river component over replicates", "1", _CURVES),
    "mean_river_error": Variable("standard error of the mean river component", "1", _CURVES),
    "mean_hill": Variable("mean hill component over replicates", "1", _CURVES),
    "mean_hill_error": Variable("standard error of the mean hill component", "1", _CURVES),
    "expected_loss": Variable("expected loss by theory", "1", _CURVES),
    "expected_river": Variable("expected river component by theory", "1", _CURVES),
    "expected_hill": Variable("expected hill component by theory", "1", _CURVES),
    "mean_distance": Variable("mean distance travelled along the river", "1", (("rate", "eval_step"),)),
    "mean_distance_error": Variable("standard error of the mean distance", "1", (("rate", "eval_step"),)),
    "expected_distance": Variable("distance by theory", "1", (("rate", "eval_step"),)),
    "speed": Variable("mean progress along the river in one update", "1", (("rate",),)),
    "speed_error": Variable("standard error of the speed", "1", (("rate",),)),
    "expected_speed": Variable("speed by theory, hills at their balance at every place", "1", (("rate",),)),
    "leading_speed": Variable("speed by theory, to leading order in the rate", "1", (("rate",),)),
    "straight_speed": Variable("speed by theory in a valley of constant width", "1", (("rate",),)),
    "plan_lr": Variable("rate of the update that follows the state, nan after the last", "1", (("plan", "eval_step"),)),
    "family_updates": Variable(
        "updates that all checkpoints cost together, shared parts once", "1", (("accounting", "family"),), "i8"
    ),
    "checkpoint_updates": Variable("updates on the path to the checkpoint", "1", _CHECKPOINTS, "i8"),
    "checkpoint_loss": Variable("mean loss of the checkpoint", "1", _CHECKPOINTS),
    "checkpoint_loss_error": Variable("standard error of the checkpoint's loss", "1", _CHECKPOINTS),
    "checkpoint_expected": Variable("expected loss of the checkpoint by the exact recursion", "1", _CHECKPOINTS),
    "gap": Variable("loss of the checkpoint minus that of the reference", "1", _CHECKPOINTS),
    "gap_error": Variable("standard error of the gap, of paired runs", "1", _CHECKPOINTS),
    "expected_gap": Variable("expected gap by the exact recursion", "1", _CHECKPOINTS),
    "hill_ratio": Variable(
        "hill loss after the cooldown over that before it", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "hill_ratio_error": Variable(
        "standard error of the ratio of hill losses", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "expected_hill_ratio": Variable(
        "ratio of hill losses by theory, in the limit of small rates", "1", (("floor", "decay", "relaxations"),)
    ),
    "crossing_at": Variable("length in relaxation times at which two shapes change order", "1", (("crossing",),)),
    "crossing_floor": Variable("floor at which they do", "1", (("crossing",),)),
    "crossing_ratio": Variable("ratio of hill losses there", "1", (("crossing",),)),
    "exact_hill_ratio": Variable(
        "the same by the exact recursion at the simulated rate", "1", (("floor", "decay", "probe_relaxations"),)
    ),
    "final_loss": Variable("mean loss at the end of the run", "1", _FINAL),
    "final_loss_error": Variable("standard error of the final loss", "1", _FINAL),
    "expected_final_loss": Variable("expected final loss by the exact recursion", "1", _FINAL),
    "crossing_time": Variable("updates after which larger rates have lower losses, to leading order", "1", ((),)),
    "crossing_time_exact": Variable("the same for the smallest and the largest rate, exactly", "1", ((),)),
    "crossing_time_found": Variable("the same, simulated", "1", ((),)),
    "crossing_time_error": Variable("standard error of the simulated crossing", "1", ((),)),
    "fastest_rate": Variable("rate of the fastest progress by theory, to leading order", "1", ((),)),
    "excess": Variable(
        "loss above that of the best optimal cooldown, as a part of what that gains over none",
        "1",
        (("valley", "probe_fraction"),),
    ),
    "excess_error": Variable("standard error of the excess", "1", (("valley", "probe_fraction"),)),
    "expected_excess": Variable("excess by theory", "1", (("valley", "decay", "fraction"),)),
    "best_fraction": Variable("best fraction for the optimal decay, by theory", "1", (("valley",),)),
    "final_hill": Variable("mean hill loss in the end", "1", _ENDINGS),
    "final_hill_error": Variable("standard error of the final hill loss", "1", _ENDINGS),
    "expected_final_hill": Variable("expected final hill loss by theory", "1", _ENDINGS),
    # Training: what belongs to each update.
    "train_loss": Variable("training loss of the batch before the update", "nat", (("step",),)),
    "grad_norm": Variable("norm of the batch gradient before clipping", "1", (("step",),)),
    "update_norm": Variable("norm of the change of the parameters", "1", (("step",),)),
    "param_norm": Variable("norm of the parameters before the update", "1", (("step",),)),
    "given_norm": Variable("norm of the gradient that the optimizer was given, after clipping", "1", (("step",),)),
    "update_cosine": Variable("cosine of the update and minus the gradient that it was made from", "1", (("step",),)),
    "update_cosine_null": Variable(
        "the same for gradients of pure noise under the optimizer's momentum", "1", (("step",),)
    ),
    "group_lr": Variable("learning rate used by the update in each parameter group", "1", (("step", "group"),)),
    "param_sketch": Variable("sketch of the parameters before the update", "1", (("step", "sketch"),)),
    # Training: what belongs to a state.
    "val_loss": Variable("loss on held-out data", "nat", _EVALUATED),
    "val_accuracy": Variable("accuracy on held-out data", "1", _EVALUATED),
    "final_train_loss": Variable("loss of the last state on the training data", "nat", ((),)),
    "final_train_accuracy": Variable("accuracy of the last state on the training data", "1", ((),)),
    # Geometry of the trajectory.
    "hessian_top": Variable("largest eigenvalue of the Hessian of the loss", "1", (("probe_step",),)),
    "hessian_top_residual": Variable("norm of H v - lambda v: some eigenvalue is this near", "1", (("probe_step",),)),
    "hessian_products": Variable("Hessian-vector products spent", "1", (("probe_step",),), "i8"),
    "probe_lr": Variable("learning rate of the update that follows the probed state", "1", (("probe_step",),)),
    **_PROBES,
    "interpolation_loss": Variable("training loss on the segment between two states", "nat", (("pair", "alpha"),)),
    "interpolation_loss_error": Variable(
        "standard error over batches of the loss on the segment", "nat", (("pair", "alpha"),)
    ),
    "interpolation_null": Variable(
        "loss on the segment in a quadratic with the same ends and middle", "nat", (("pair", "alpha"),)
    ),
    "interpolation_dip": Variable("mean loss of the segment's ends minus that of its middle", "nat", (("pair",),)),
    "interpolation_dip_error": Variable("standard error of the dip, paired over batches", "nat", (("pair",),)),
    "interpolation_rise": Variable("largest rise of the loss from a place to a later one", "nat", (("pair",),)),
    "interpolation_rise_error": Variable(
        "standard error of the rise between these places, paired over batches", "nat", (("pair",),)
    ),
    "interpolation_batches": Variable("batches that the losses on the segments are means over", "1", ((),), "i8"),
    "interpolation_start": Variable("updates made before the first end of the segment", "1", (("pair",),), "i8"),
    "interpolation_stop": Variable("updates made before the second end of the segment", "1", (("pair",),), "i8"),
    "pca_share": Variable("share of the variance of the snapshots, centred", "1", (("window", "component"),)),
    "pca_null": Variable(
        "same share for a random walk in high dimension with the run's own rates", "1", (("window", "component"),)
    ),
    "pca_snapshots": Variable("number of snapshots in the window", "1", (("window",),), "i8"),
    "pca_share_error": Variable(
        "standard error of a share that is measured on sketches", "1", (("window", "component"),)
    ),
    "drift_share": Variable("squared mean step over mean squared step between snapshots", "1", (("window",),)),
    "drift_null": Variable(
        "same for a random walk with the run's own rates: 1 over their number for independent steps",
        "1",
        (("window",),),
    ),
    "phase_cosine": Variable("absolute cosine of the first components of stable and cooldown", "1", ((),)),
    "phase_cosine_null": Variable("the same for two directions drawn at random, mean", "1", ((),)),
    "window_cosine": Variable("absolute cosine of the first components of two windows", "1", (("window_pair",),)),
    "window_cosine_null": Variable("the same for two directions drawn at random, mean", "1", (("window_pair",),)),
    "direction_norm": Variable(
        "norm of H v, v the first component of the window, H at the start of the cooldown", "1", (("window",),)
    ),
    "direction_norm_low": Variable("lower end of its interval by the bootstrap over snapshots", "1", (("window",),)),
    "direction_norm_high": Variable("upper end of its interval by the bootstrap over snapshots", "1", (("window",),)),
    "direction_null": Variable(
        "root mean square of the same norm for random directions, sqrt(Tr H^2 / dim)", "1", ((),)
    ),
    "direction_null_error": Variable("standard error of that null, over random vectors", "1", ((),)),
    "direction_curvature": Variable("curvature v'Hv of the window's first component", "1", (("window",),)),
    "direction_curvature_null": Variable("the same for random directions, Tr H / dim", "1", ((),)),
    "direction_ratio": Variable("norm of H v of the early cooldown over that of the late stable window", "1", ((),)),
    "direction_ratio_low": Variable("lower end of the ratio's interval by the bootstrap", "1", ((),)),
    "direction_ratio_high": Variable("upper end of the ratio's interval by the bootstrap", "1", ((),)),
    "direction_ratio_matched": Variable(
        "the same ratio for a stable window of the early cooldown's length and spacing", "1", ((),)
    ),
    "direction_ratio_matched_low": Variable("lower end of that ratio's interval by the bootstrap", "1", ((),)),
    "direction_ratio_matched_high": Variable("upper end of that ratio's interval by the bootstrap", "1", ((),)),
    "cooldown_average_loss": Variable(
        "loss on the probe's batches at the average of the cooldown's snapshots", "nat", ((),)
    ),
    "stable_average_loss": Variable(
        "loss on the probe's batches at the average of the late stable snapshots", "nat", ((),)
    ),
    **_PREDICTABILITY,
    **_LANDSCAPES,
    # How the run ended.
    "diverged": Variable("1 where the loss stopped being finite", "1", _PER_RUN, "i1"),
    "diverged_at": Variable("updates made before the first state that is not finite, -1 if none", "1", _PER_RUN, "i8"),
}

# The same of the average of the iterates, and the exact expectations and standard deviations of both.
_PARTS = {"loss": "loss", "river": "river component of the loss", "hill": "hill component of the loss"}
for _of, _whose in (("", ""), ("average_", " of the average of the iterates")):
    for _name, _part in _PARTS.items():
        _words = _part + _whose
        if _of:
            VARIABLES[_of + _name] = Variable(_words, "1", _RUNS)
        VARIABLES[f"exact_{_of}{_name}"] = Variable(f"expected {_words}, exact", "1", (("eval_step",),))
        VARIABLES[f"exact_{_of}{_name}_std"] = Variable(
            f"exact standard deviation of the {_words} over replicates", "1", (("eval_step",),)
        )
