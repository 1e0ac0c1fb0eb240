"""Rules about outcomes and labels: failures that are missing, labels that are all zero or say something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...labels import Result
from ..findings import Hit
from ..measures import DatasetMeasures, EpisodeMeasures
from ..registry import rule


@rule(
    severity="error",
    reason="The outcome and the labels of an episode are two stories, and a model learns the wrong one.",
    advice="Correct the outcome with dataset.set_outcome, or leave out the stored labels: SALUS computes them.",
)
def label_contradiction(episode: EpisodeMeasures, *, most_share: float = 0.0) -> Iterator[Hit]:
    """Stored labels against those that follow from the outcome, where it decides; others against success."""
    for name, found in episode.labels.items():
        if found.compared:
            share = found.differing / found.compared
            if share > most_share:
                yield Hit(
                    f"{share:.1%} of the labels are not those of the outcome ({_outcome(episode)})",
                    share,
                    most_share,
                    feature=name,
                    steps=(found.first_differing, found.first_differing + 1),
                )
        elif episode.outcome.result == "success" and found.positive:
            yield Hit(
                f"{found.positive} labels are positive, and the outcome is success",
                found.positive / found.count,
                0.0,
                feature=name,
            )


@rule(
    per="dataset",
    severity="error",
    reason="A model that is trained on labels without a positive one learns to say no.",
    advice="Record outcomes with a failure step, episode.fail(kind, step=...), and let SALUS compute the labels.",
)
def zero_labels(dataset: DatasetMeasures) -> Iterator[Hit]:
    """Stored labels without a positive one; only a warning where no episode is a failure."""
    failures = sum(each.outcome.result == "failure" for each in dataset.episodes)
    for name in dict.fromkeys(name for each in dataset.episodes for name in each.labels):
        found = [each.labels[name] for each in dataset.episodes if name in each.labels]
        if sum(each.count for each in found) and not any(each.positive for each in found):
            yield Hit(
                f"all labels of {len(found)} episodes are zero; {failures} of the episodes are failures",
                0.0,
                0.0,
                feature=name,
                severity=None if failures else "warning",
            )


@rule(
    per="dataset",
    reason="Without a failure there is nothing to learn about failures: all labels are zero, or unknown.",
    advice="Record outcomes: episode.fail(kind, step=...) and episode.succeed(); or record failures.",
)
def no_failures(dataset: DatasetMeasures, *, least_episodes: float = 5) -> Iterator[Hit]:
    """A schema with failure kinds or label horizons, and no episode that failed."""
    declared = dataset.schema.failure_kinds or len(dataset.schema.label_horizons)
    if declared and len(dataset.episodes) >= least_episodes:
        results = Counter(each.outcome.result for each in dataset.episodes)
        if not results["failure"]:
            what = f"{results['success']} succeeded, of {results['unknown']} the outcome is unknown"
            yield Hit(f"none of {len(dataset.episodes)} episodes is a failure: {what}", 0.0, 1.0)


@rule(
    reason="The labels of a failure need to know when it happened; without, none of the episode is known.",
    advice="dataset.set_outcome(uid, salus.Outcome('failure', kind, step)).",
)
def failure_details(episode: EpisodeMeasures) -> Iterator[Hit]:
    """Failures without a step, with a step outside of the episode, or at its first step; without a kind: info."""
    outcome, horizons = episode.outcome, len(episode.schema.label_horizons)
    if outcome.result != "failure":
        return
    if outcome.step is None:
        if horizons:
            yield Hit("failed at an unknown step: none of its labels is known")
    elif not 0 <= outcome.step < episode.num_steps:
        yield Hit(
            f"failed at step {outcome.step}, and has {episode.num_steps} steps",
            outcome.step,
            episode.num_steps,
            severity="error",
        )
    elif outcome.step == 0 and horizons:
        yield Hit("failed at its first step: no step before it can be labelled", 0.0, 1.0)
    if outcome.kind is None and episode.schema.failure_kinds:
        yield Hit("failed in an unknown way: its steps before the failure have no label", severity="info")


@rule(
    per="dataset",
    reason="With very few successes or failures, a model does best by always saying the same.",
    advice="Record more of the rarer outcome, or weight it: salus.torch.Loader(weights=...).",
)
def class_balance(dataset: DatasetMeasures, *, least_share: float = 0.05, least_episodes: float = 20) -> Iterator[Hit]:
    """The share of the rarer one of success and failure."""
    results = Counter(each.outcome.result for each in dataset.episodes)
    known = results["success"] + results["failure"]
    rarer: Result = "success" if results["success"] < results["failure"] else "failure"
    if known >= least_episodes and results["failure"]:  # without any, no_failures says so
        share = results[rarer] / known
        if share < least_share:
            yield Hit(f"{results[rarer]} of {known} episodes have the outcome {rarer}", share, least_share)


@rule(
    per="dataset",
    severity="info",
    reason="Of episodes without an outcome, the labels of the last steps are unknown.",
    advice="Give outcomes while recording, or later by dataset.set_outcome.",
)
def unknown_outcome(dataset: DatasetMeasures) -> Iterator[Hit]:
    """Episodes whose outcome is unknown, where outcomes matter."""
    declared = dataset.schema.failure_kinds or len(dataset.schema.label_horizons)
    unknown = sum(each.outcome.result == "unknown" for each in dataset.episodes)
    if unknown and declared:
        share = unknown / len(dataset.episodes)
        yield Hit(f"the outcome of {unknown} of {len(dataset.episodes)} episodes is unknown", share, 0.0)


@rule(
    per="dataset",
    severity="info",
    reason="A kind of failure that never happens cannot be learnt; its labels are all zero.",
    advice="Record such failures, or leave the kind out of the schema.",
)
def missing_kind(dataset: DatasetMeasures) -> Iterator[Hit]:
    """Declared kinds of failure without an episode, where there are failures."""
    kinds = Counter(each.outcome.kind for each in dataset.episodes if each.outcome.result == "failure")
    missing = [kind for kind in dataset.schema.failure_kinds if not kinds[kind]]
    if missing and kinds:
        yield Hit(f"no episode failed with {', '.join(missing)}", float(len(missing)), 0.0)


def _outcome(episode: EpisodeMeasures) -> str:
    outcome = episode.outcome
    step = "" if outcome.step is None else f" at step {outcome.step}"
    return f"{outcome.result}{f': {outcome.kind}' if outcome.kind else ''}{step}"
