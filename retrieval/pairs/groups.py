"""Groups of near-identical images, and the one of each to keep. Nothing is deleted.

Every image of a group is near-identical to the kept one, or a crop of it. A chain of similar images
is not enough: what differs from the kept image is in another group, or in none. A crop is never
kept in place of the whole image.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from retrieval.choices import choice
from retrieval.contracts import Json
from retrieval.errors import BadImage
from retrieval.images.facts import ImageFacts, facts_of_each
from retrieval.images.source import natural
from retrieval.pairs.duplicates import Duplicates
from retrieval.pairs.match import EXACT, Match

_FORMATS = ("TIFF", "PNG", "BMP", "JPEG2000", "HEIF", "AVIF", "WEBP", "JPEG", "MPO", "GIF")
"""Pillow's names of formats, the best first: those without loss, then those of finer loss."""


COLUMNS = ("group", "keep", "remove", "exact", "correlation", "mirrored", "rotated")
"""The first columns of the CSV file of groups."""


class Keep(StrEnum):
    """Rule for the image of a group that is kept.

    Ties are decided in this order: most pixels, oldest date, best format, oldest file, first id.
    The date is the EXIF date taken, or else that of the file's last change.
    """

    LARGEST = "largest"  # most pixels
    OLDEST = "oldest"
    NEWEST = "newest"
    FIRST = "first"  # first id, numbers in it compared as numbers


@dataclass(frozen=True, slots=True)
class GroupImage:
    """An image of a group: its set (0 or 1) and row, and facts about it.

    match: likeness to the kept image, which is turned for it. exact: the files have the same bytes.
    """

    part: int
    row: int
    id: str
    label: str | None
    path: str
    facts: ImageFacts
    match: Match = EXACT
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Near-identical images: the one to keep, and those to remove, the most similar first."""

    keep: GroupImage
    remove: Sequence[GroupImage]

    @property
    def bytes(self) -> int:
        """Return the bytes of the files to remove."""
        return sum(image.facts.bytes or 0 for image in self.remove)


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of duplicates, those with the most bytes to remove first.

    unreadable: images that were near-identical, and are in no group because they are gone.
    """

    groups: Sequence[Group]
    unreadable: Sequence[BadImage]

    def to_json(self) -> list[Json]:
        """Return the groups as `retr duplicates --json` prints them."""
        return [
            {"keep": group.keep.id, "remove": [image.id for image in group.remove]}
            for group in self.groups
        ]

    def rows(self) -> list[dict[str, Json]]:
        """Return a row for each image to remove, as `retr duplicates --csv` writes it."""
        return [
            {
                "group": number,
                "keep": group.keep.id,
                "remove": image.id,
                "exact": image.exact,
                "correlation": image.match.correlation,
                "mirrored": image.match.turn.mirrored,
                "rotated": image.match.turn.rotated,
                **_columns("keep", group.keep),
                **_columns("remove", image),
                "crop": image.match.crop is not None,
            }
            for number, group in enumerate(self.groups, start=1)
            for image in group.remove
        ]


def find_groups(found: Duplicates, keep: Keep | str = Keep.LARGEST) -> Groups:
    """Return the groups of near-identical images.

    keep: which image of a group is kept. Of duplicates between two sets, the images of the first
        set are kept: a group is such an image, and those of the second set whose most similar
        image it is. `keep` then chooses between exact copies in the first set.
    """
    keep = choice(Keep, keep)
    images, unreadable = _images(found)
    # From here on, all rows of an image are there, the ones to keep first.
    ranked = [
        {
            number: sorted(rows, key=lambda image: _preference(image, keep))
            for number, rows in part.items()
        }
        for part in images
    ]
    groups = _within(found, ranked[0], keep) if len(ranked) == 1 else _between(found, *ranked)
    groups.sort(key=lambda group: (-group.bytes, group.keep.row))
    return Groups(groups, unreadable)


def stars(
    ranked: Sequence[int],
    edges: Mapping[int, Collection[int]],
    alike: Callable[[int, Sequence[int]], Collection[int]],
) -> list[tuple[int, list[int]]]:
    """Return each kept image with the images that are near-identical to it.

    ranked: the images, the one to keep first. edges: for each image, those known to be
    near-identical. alike: of an image and others, returns the others that are near-identical; it is
    asked about images that are connected through other images only.
    """
    place = {image: i for i, image in enumerate(ranked)}
    found = []
    for component in _components(ranked, edges):
        left = sorted(component, key=place.__getitem__)
        while left:
            kept, *others = left
            known = {image for image in others if image in edges.get(kept, ())}
            unknown = [image for image in others if image not in known]
            joined = known | {*(alike(kept, unknown) if unknown else ())}
            found.append((kept, [image for image in others if image in joined]))
            left = [image for image in others if image not in joined]
    return found


def _components(
    images: Iterable[int], edges: Mapping[int, Collection[int]]
) -> Iterable[Sequence[int]]:
    """Yield the images that are connected, directly or through others of the images."""
    left = dict.fromkeys(images)
    while left:
        component = [next(iter(left))]
        del left[component[0]]
        for image in component:  # grows meanwhile
            for other in edges.get(image, ()):
                if other in left:
                    del left[other]
                    component.append(other)
        yield component


def _images(
    found: Duplicates,
) -> tuple[list[dict[int, list[GroupImage]]], list[BadImage]]:
    """Return, for each set, the rows of each image that has duplicates, and missing files."""
    rows_of = found.distinct.rows
    numbers = {number for pair in found.matches for number in pair}
    numbers |= {
        number
        for number in range(len(found.distinct))
        if sum(len(rows[number]) for rows in rows_of) > 1
    }
    sets = (found.first, found.second)[: len(rows_of)]
    images: list[dict[int, list[GroupImage]]] = []
    unreadable = []
    for part, (each, rows) in enumerate(zip(sets, rows_of, strict=True)):
        paths = each.all_paths()
        places = [(number, row) for number in sorted(numbers) for row in rows[number]]
        facts = facts_of_each([paths[row] for _, row in places])
        readable: dict[int, list[GroupImage]] = defaultdict(list)
        for (number, row), known in zip(places, facts, strict=True):
            if isinstance(known, BadImage):
                unreadable.append(known)
            else:
                named = str(each.ids[row]), each.labels[row], paths[row]
                readable[number].append(GroupImage(part, row, *named, known))
        images.append(readable)
    return images, unreadable


def _preference(image: GroupImage, keep: Keep) -> tuple[Any, ...]:
    """Return a key that is smaller the rather the image is kept."""
    facts, first = image.facts, natural(image.id)
    date = math.inf if facts.date is None else facts.date
    changed = math.inf if facts.changed is None else facts.changed
    kind = _FORMATS.index(facts.format) if facts.format in _FORMATS else len(_FORMATS)
    wanted = {
        Keep.LARGEST: (),
        Keep.OLDEST: (date,),
        Keep.NEWEST: (math.inf if facts.date is None else -facts.date,),
        Keep.FIRST: (first,),
    }[keep]
    return (*wanted, -facts.pixels, date, kind, changed, first)


def _within(found: Duplicates, images: dict[int, list[GroupImage]], keep: Keep) -> list[Group]:
    """Return the groups within one set. images: rows of each image, the ones to keep first."""
    matches: dict[tuple[int, int], Match] = {}
    edges: dict[int, set[int]] = defaultdict(set)
    wholes: dict[int, set[int]] = defaultdict(set)
    for (a, b), match in found.matches.items():
        if a in images and b in images:
            matches[a, b] = match
            matches[b, a] = match.reversed()
            edges[a].add(b)
            edges[b].add(a)
            if match.crop:
                whole, part = (a, b) if match.crop.of_first else (b, a)
                wholes[part].add(whole)

    def alike(kept: int, others: Sequence[int]) -> list[int]:
        more = found.comparison.matches(np.full(len(others), kept), np.array(others))
        if found.cropping is not None:
            left = [other for other in others if (kept, other) not in more]
            more |= found.cropping.crops_of(kept, left)
        matches.update(more)
        return [other for _, other in more]

    depths = crop_depths(wholes)
    ranked = sorted(
        images,
        key=lambda number: (depths.get(number, 0), *_preference(images[number][0], keep)),
    )
    return [
        _group(images[kept], [(images[other], matches[kept, other]) for other in joined])
        for kept, joined in stars(ranked, edges, alike)
        if joined or len(images[kept]) > 1
    ]


def crop_depths(wholes: Mapping[int, Collection[int]]) -> dict[int, int]:
    """Return the depth of each crop: 1 for a crop of a whole image, 2 for a crop of that.

    wholes: for each crop, the images that it is a crop of.
    """
    depths = dict.fromkeys(wholes, 1)
    for _ in wholes:  # at most as many rounds as there are crops, also if some are in a circle
        deeper = {
            part: 1 + max(depths.get(whole, 0) for whole in found) for part, found in wholes.items()
        }
        if deeper == depths:
            break
        depths = deeper
    return depths


def _between(
    found: Duplicates,
    first: dict[int, list[GroupImage]],
    second: dict[int, list[GroupImage]],
) -> list[Group]:
    """Return the groups of an image of the first set and those of the second that it is most like.

    first, second: rows of each image, the ones to keep first.
    """
    best = {number: (number, EXACT) for number in second if number in first}
    for (a, b), match in found.matches.items():
        if a not in first or b not in second or (match.crop and not match.crop.of_first):
            continue  # the first set keeps its images, and a whole image is not removed for a crop
        other = best.get(b)
        if other is None or (other[1] is not EXACT and match.correlation > other[1].correlation):
            best[b] = a, match
    joined: dict[int, list[tuple[list[GroupImage], Match]]] = defaultdict(list)
    for number, (kept, match) in best.items():
        joined[kept].append((second[number], match))
    return [_group(first[kept][:1], others) for kept, others in joined.items()]


def _group(
    kept: Sequence[GroupImage], others: Sequence[tuple[Sequence[GroupImage], Match]]
) -> Group:
    """Return the group of an image's rows, the first of which is kept, and of other images."""
    keep, *copies = kept
    remove = [_matched(image, EXACT) for image in copies]
    ordered = sorted(others, key=lambda other: (other[1] is not EXACT, -other[1].correlation))
    remove += [_matched(image, match) for images, match in ordered for image in images]
    return Group(keep, remove)


def _matched(image: GroupImage, match: Match) -> GroupImage:
    named = image.part, image.row, image.id, image.label, image.path, image.facts
    return GroupImage(*named, match, match is EXACT)


def _columns(name: str, image: GroupImage) -> dict[str, Json]:
    return {
        f"{name}_path": image.path,
        f"{name}_width": image.facts.width,
        f"{name}_height": image.facts.height,
        f"{name}_bytes": image.facts.bytes,
    }
