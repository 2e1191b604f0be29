"""Print tables of results: an evaluation, a suite of indices, the choice of an index."""

from typing import TYPE_CHECKING

from cli.output import Output
from retrieval.units import size

if TYPE_CHECKING:
    from benchmarks.suite.run import SuiteReport
    from retrieval.index.auto.trials import Trial, Tuning
    from retrieval.quality.evaluation import Evaluation

GROUP_TITLES = {"joint": "all", "trained": "trained on", "held_out": "held out"}
"""Titles of the groups of classes that pairs are drawn from."""


def print_evaluation(output: Output, result: "Evaluation", protocol: str | None = None) -> None:
    """Print the means by k, with their margins below, and those of full rankings."""
    from retrieval.quality.summary import AT_K_NAMES, left_out, number, overall

    output.say(
        f"{result.queries:,} queries against {result.database:,} images, {result.metric}"
        + (f", protocol {protocol}" if protocol else "")
    )
    for sentence in left_out(result):
        output.say(sentence)
    output.say()
    lines = []
    for measure, name in AT_K_NAMES.items():
        lines.append((name, *map(number, getattr(result, measure).values())))
        if measure in ("precision_at", "map_at"):
            lines.append(("  ±", *(number(result.margin(measure, k)) for k in result.ks)))
    output.table(("k", *(f"{k:,}" for k in result.ks)), lines)
    output.say()
    means = overall(result)
    if means:
        output.say("   ".join(f"{name} {value}" for name, value in means.items()))
        output.say()


def print_bench(output: Output, report: "SuiteReport") -> None:
    """Print the table, and the data and machine that its numbers hold for."""
    from benchmarks.suite.table import measured_on, report_table

    data = report.data
    output.say(measured_on(data["queries"], data["database"], data, report.machine["cpu"]))
    header, *lines = report_table([row.to_json() for row in report.rows])
    output.table(header, lines, left=2)
    output.say("*: on the Pareto front of recall@10 and queries per second in batches")


def print_tuning(output: Output, tuning: "Tuning") -> None:
    """Print the candidates that were tried, the choice, and its reason."""
    target = tuning.target
    for problem in tuning.failed:
        output.warn(f"not measured: {problem}")
    if tuning.trials:
        source = "rows held out of the samples" if tuning.held_out else "the given ones"
        output.say(f"{tuning.queries:,} queries: {source}")
        output.table(
            ("backend", "setting", "rows", f"recall@{target.k}", "q/s", "p95 ms", "size", ""),
            [_trial_line(trial, trial.verdict) for trial in tuning.trials]
            + [_trial_line(trial, trial.verdict) for trial in tuning.checked[:-1]]
            + [_trial_line(trial, "chosen") for trial in tuning.checked[-1:]],
            left=2,
        )
    output.say(tuning.reason)


def _trial_line(trial: "Trial", remark: str) -> tuple[str, ...]:
    setting = " ".join(f"{name}={value}" for name, value in trial.setting.items())
    return (
        trial.backend,
        setting,
        f"{trial.rows:,}",
        f"{trial.recall:.4f}",
        f"{1 / trial.seconds:,.0f}",
        f"{1000 * trial.latency:.3f}",
        size(trial.size_bytes),
        remark,
    )
