"""What a program is about to do, and what it made: a title, and below it one aligned line a fact."""

from collections.abc import Mapping


def account(title: str, facts: Mapping[str, str]) -> str:
    """Lay out facts by name below a title; a fact that is empty is left out."""
    told = {name: fact for name, fact in facts.items() if fact}
    width = max((len(name) for name in told), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in told.items())])


def duration(seconds: float) -> str:
    """Write a time as people say it: `42 s`, `6 min 3 s`, `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_of_hour} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
