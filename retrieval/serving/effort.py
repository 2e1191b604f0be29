"""The search option of an index that trades recall for time, as the page offers it."""

from dataclasses import dataclass, replace
from typing import Any

from retrieval.contracts import Json, Tunable
from retrieval.errors import BadInput
from retrieval.index.fan_out import apply_effort
from retrieval.index.folder import IndexFacts
from retrieval.registry import make_indexer


@dataclass(frozen=True, slots=True)
class Effort:
    """The search option that trades recall for time, with its useful values, ascending."""

    option: str
    values: tuple[int | str, ...]
    current: int | str
    indexer: Any

    @classmethod
    def of(cls, facts: IndexFacts) -> "Effort | None":
        """Return the efforts of a built index; None if its backend has no such option."""
        indexer: Any = make_indexer(facts.backend, {**facts.options, "metric": facts.metric})
        if not isinstance(indexer, Tunable):
            return None
        ladders = [ladder for ladder in indexer.ladders() if len(ladder) > 1]
        if not ladders:
            return None
        ladder = min(ladders, key=lambda ladder: _differences(ladder[0], indexer))
        option = next(
            name for name in vars(indexer) if len({getattr(rung, name) for rung in ladder}) > 1
        )
        current = getattr(indexer, option)
        values = [getattr(rung, option) for rung in ladder]
        if current not in values:
            values = sorted([*values, current]) if isinstance(current, int) else [current, *values]
        return cls(option, tuple(values), current, indexer)

    def applied(self, index: Any, value: str) -> None:
        """Set the option of the index to a value, given as text. Raises BadInput for others."""
        by_text = {str(each): each for each in self.values}
        if value not in by_text:
            raise BadInput(
                f"{self.option} is '{value}'; give one of {', '.join(by_text)}, or leave it out"
            )
        chosen = replace(self.indexer, **{self.option: by_text[value]})
        apply_effort(chosen, index)

    def to_json(self) -> dict[str, Json]:
        """Return the document that `GET /api/indices` lists."""
        return {"option": self.option, "values": [*self.values], "current": self.current}


def _differences(a: Any, b: Any) -> int:
    return sum(value != getattr(b, name) for name, value in vars(a).items())
