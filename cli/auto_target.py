"""The options of `retr index --backend auto`."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import seed_option
from retrieval.units import BYTES, SECONDS, parse_quantity

if TYPE_CHECKING:
    from retrieval.index.auto.trials import Target


@dataclass(frozen=True, slots=True)
class AutoTarget:
    """The options of --backend auto."""

    target_recall: Annotated[
        float | None,
        typer.Option(help="With --backend auto: minimum recall@k.  [default: 0.95]"),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(help="With --backend auto: maximum size of the index, such as 2GB or 500MB."),
    ] = None
    max_latency: Annotated[
        str | None,
        typer.Option(help="With --backend auto: maximum p95 latency, such as 1ms or 200us."),
    ] = None
    k: Annotated[
        int | None,
        typer.Option("-k", help="With --backend auto: number of neighbors, k.  [default: 10]"),
    ] = None
    batches: Annotated[
        bool,
        typer.Option(
            "--batches",
            help="With --backend auto: compare the time of one call with many queries, not of "
            "single queries.",
        ),
    ] = False
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE",
            help="With --backend auto: embeddings of the queries to measure with, or a CSV file "
            "with a column text, for searches in words.  [default: a sample of the rows]",
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            help="With --backend auto: maximum time for trials and the build, such as 60s or 5min; "
            "checks over all rows take some seconds more.  "
            "[default: a minute, or more if the fastest index takes longer to build]",
        ),
    ] = None
    seed: Annotated[int | None, seed_option("Random seed (--backend auto only).  [default: 0]")] = (
        None
    )

    def given(self) -> list[str]:
        """Return the names of the options that are given."""
        names = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        return ["-k" if name == "k" else f"--{name.replace('_', '-')}" for name in names]

    def target(self) -> "Target":
        """Return the requirements on the index. Raises BadInput for a value out of range."""
        from retrieval.index.auto.trials import Target

        given = {
            "recall": self.target_recall,
            "k": self.k,
            "max_memory": limit("--max-memory", self.max_memory, BYTES),
            "max_latency": limit("--max-latency", self.max_latency, SECONDS),
        }
        known = {name: value for name, value in given.items() if value is not None}
        return Target(**known, batches=self.batches)  # type: ignore[arg-type]


def limit(option: str, text: str | None, units: dict[str, float]) -> float | None:
    """Return a limit in bytes or seconds; None without one. Raises BadInput for other text."""
    return None if text is None else parse_quantity(option, text, units)
