"""Group: several sites patched together, with the name and the place that tables and maps show it by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from crosspatch.core.errors import BadInput
from crosspatch.sites.site import Site

Place = int | str


@dataclass(frozen=True, slots=True)
class Edge:
    """Name one edge of attention: what the query position reads from the key position, in one layer.

    `head` None means all heads. Cutting it sets the score to −∞ before the softmax, so that the rest of the pattern is
    normalised anew. Positions are indices or a task's names.
    Raises BadInput for a negative layer or head.
    """

    layer: int
    query: Place
    key: Place
    head: int | None = None

    kind: ClassVar[str] = "attn.edge"

    def __post_init__(self) -> None:
        if self.layer < 0 or (self.head is not None and self.head < 0):
            raise BadInput(f"layer {self.layer}, head {self.head} of an attention edge: both are counted from 0.")

    def __str__(self) -> str:
        return f"{self.kind}[{self.layer}, {'all' if self.head is None else self.head}]@{self.query}<-{self.key}"


@dataclass(frozen=True, slots=True)
class Group:
    """Name sites (or attention edges) that are patched in one run.

    In a map a group stands at `layer` and `position` under the heading `kind`; without a layer, under its name.
    Raises BadInput for a group without members, without a name, or with one member twice.
    """

    name: str
    members: tuple[Site | Edge, ...]
    kind: str = "group"
    layer: int | None = None
    place: Place | None = None

    unit: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.members or not self.name:
            raise BadInput(f"group {self.name!r} of {len(self.members)} sites: give a name and at least one site.")
        if len(set(self.members)) != len(self.members):
            twice = next(member for member in self.members if self.members.count(member) > 1)
            raise BadInput(f"group {self.name!r} holds {twice} twice.")

    @property
    def position(self) -> Place | None:
        """Tell the column that the group stands in."""
        return self.name if self.layer is None else self.place

    def __str__(self) -> str:
        return self.name


Address = Site | Group


def members_of(address: Address) -> tuple[Site | Edge, ...]:
    """Return the sites that are patched together."""
    return address.members if isinstance(address, Group) else (address,)


def group_to_json(group: Group) -> dict[str, Any]:
    """Write a group as plain data."""
    members = [_member_to_json(member) for member in group.members]
    return {"name": group.name, "members": members, "kind": group.kind, "layer": group.layer, "place": group.place}


def group_from_json(entry: Mapping[str, Any]) -> Group:
    """Read what `group_to_json` wrote. Raises KeyError, TypeError or a CrosspatchError for anything else."""
    members = tuple(Edge(*m["edge"]) if "edge" in m else Site(*m["site"]) for m in entry["members"])
    return Group(entry["name"], members, entry["kind"], entry["layer"], entry["place"])


def _member_to_json(member: Site | Edge) -> dict[str, Any]:
    if isinstance(member, Edge):
        return {"edge": [member.layer, member.query, member.key, member.head]}
    return {"site": [member.kind, member.layer, member.unit, member.position]}
