"""The states of a message, and what takes it from one to another."""

from __future__ import annotations

from typing import NamedTuple

from docs.pictures.drawing import BLUE, GREEN, ORANGE, RED, VIOLET, Drawing, wrap
from persistcoll.engine.records import State

__all__ = ["TRANSITIONS", "Transition", "draw"]

Place = State | None
"""``None``: nothing of the message is stored, not yet or not any more."""


class Transition(NamedTuple):
    """What takes a message from one state to another."""

    source: Place
    target: Place
    why: str


READY, DELAYED, BLOCKED = State.READY, State.DELAYED, State.BLOCKED
CLAIMED, DONE, DEAD = State.CLAIMED, State.DONE, State.DEAD

TRANSITIONS = (
    Transition(None, READY, "put"),
    Transition(None, DELAYED, "put with a delay"),
    Transition(None, BLOCKED, "put into a busy group"),
    Transition(DELAYED, READY, "delay over"),
    Transition(BLOCKED, READY, "head finished"),
    Transition(BLOCKED, DELAYED, "head finished, delay not over"),
    Transition(READY, CLAIMED, "get"),
    Transition(CLAIMED, READY, "release"),
    Transition(CLAIMED, READY, "nack without a delay"),
    Transition(CLAIMED, READY, "lease over"),
    Transition(CLAIMED, READY, "holder dead"),
    Transition(CLAIMED, DELAYED, "nack with a delay"),
    Transition(CLAIMED, DONE, "ack"),
    Transition(CLAIMED, DEAD, "fail"),
    Transition(CLAIMED, DEAD, "nack at the last attempt"),
    Transition(CLAIMED, DEAD, "lease over at the last attempt"),
    Transition(CLAIMED, DEAD, "holder dead at the last attempt"),
    Transition(DEAD, READY, "redrive"),
    Transition(DEAD, BLOCKED, "redrive into a busy group"),
    *(
        Transition(state, None, why)
        for state in (READY, DELAYED, BLOCKED)
        for why in ("cancel", "purge", "ttl over")
    ),
    Transition(CLAIMED, None, "ack that keeps nothing"),
    Transition(CLAIMED, None, "return after the ttl"),
    Transition(DONE, None, "beyond keep_done"),
    Transition(DEAD, None, "cancel"),
    Transition(DEAD, None, "purge of the dead"),
    Transition(DEAD, None, "beyond keep_dead"),
)

_WIDTH, _LEFT = 530, 18
_BOXES = {
    BLOCKED: (18, 70, 118, 40, VIOLET),
    DELAYED: (394, 70, 118, 40, ORANGE),
    READY: (206, 184, 118, 40, BLUE),
    CLAIMED: (166, 352, 176, 40, BLUE),
    DEAD: (62, 500, 118, 40, RED),
    DONE: (350, 500, 118, 40, GREEN),
}


def _name(place: Place) -> str:
    return "gone" if place is None else place.value


def reasons(source: Place, target: Place) -> list[str]:
    """Return what takes a message from one state to the other.

    :raise ValueError: nothing does.
    """
    found = [each.why for each in TRANSITIONS if (each.source, each.target) == (source, target)]
    if not found:
        raise ValueError(f"nothing takes a message from {_name(source)} to {_name(target)}")
    return found


def description() -> str:
    """Return all transitions as a text."""
    pairs = dict.fromkeys((each.source, each.target) for each in TRANSITIONS)
    each = (
        f"{source.value if source else 'new'} to {_name(target)}: {', '.join(reasons(source, target))}"
        for source, target in pairs
    )
    return ". ".join(each) + "."


def draw() -> Drawing:
    """Return the picture."""
    drawing = Drawing("message_life", "The states of a message", description(), _WIDTH)
    for state, (x, y, width, height, colour) in _BOXES.items():
        drawing.box(x, y, width, height, state.value, colour, bold=True)
    _puts(drawing)
    _waits(drawing)
    _claims(drawing)
    _ends(drawing)
    _removals(drawing, 576)
    return drawing


def _only(source: Place, target: Place) -> str:
    [why] = reasons(source, target)
    return why


def _listed(source: Place, target: Place) -> list[str]:
    found = reasons(source, target)
    return [f"{why}," for why in found[:-1]] + found[-1:]


def _puts(drawing: Drawing) -> None:
    for target, x, y in (BLOCKED, 88, 34), (DELAYED, 453, 34), (READY, 265, 148):
        drawing.dot(x, y)
        drawing.arrow([(x, y), (x, _BOXES[target][1])])
        drawing.text(x, y - 10, _only(None, target), "middle")


def _waits(drawing: Drawing) -> None:
    drawing.arrow([(136, 90), (394, 90)])
    drawing.text(265, 82, _only(BLOCKED, DELAYED), "middle")
    drawing.arrow([(118, 110), (118, 192), (206, 192)])
    drawing.text(126, 180, _only(BLOCKED, READY), size=13)
    drawing.arrow([(412, 110), (412, 204), (324, 204)])
    drawing.text(404, 196, _only(DELAYED, READY), "end")


def _claims(drawing: Drawing) -> None:
    drawing.arrow([(222, 224), (222, 352)])
    drawing.text(214, 292, _only(READY, CLAIMED), "end")
    drawing.arrow([(260, 352), (260, 224)])
    drawing.lines(268, 260, _listed(CLAIMED, READY))
    drawing.arrow([(342, 372), (488, 372), (488, 110)])
    drawing.text(480, 364, _only(CLAIMED, DELAYED), "end", 13)


def _ends(drawing: Drawing) -> None:
    drawing.arrow([(320, 392), (320, 422), (420, 422), (420, 500)])
    drawing.text(428, 464, _only(CLAIMED, DONE))
    drawing.arrow([(186, 392), (186, 422), (121, 422), (121, 500)])
    drawing.lines(131, 440, _listed(CLAIMED, DEAD))
    drawing.line([(62, 520), (36, 520), (36, 214)])
    drawing.arrow([(36, 214), (36, 110)])
    drawing.arrow([(36, 214), (206, 214)])
    drawing.text(48, 232, _only(DEAD, READY))
    drawing.lines(44, 134, wrap(_only(DEAD, BLOCKED), 72, 13), size=13)


def _removals(drawing: Drawing, y: float) -> None:
    """Say below the arrows what removes a message."""
    causes: dict[tuple[str, ...], list[str]] = {}
    for state in _BOXES:
        causes.setdefault(tuple(reasons(state, None)), []).append(state.value)
    drawing.text(_LEFT, y, "Nothing of it is stored any more after", bold=True)
    for why, states in causes.items():
        y += 22
        drawing.text(_LEFT, y, f"{', '.join(states)}:", italic=True)
        y = drawing.paragraph(_LEFT + 176, y, _WIDTH - _LEFT - 184, ", ".join(why)) - 17.5
