"""Everything that can go wrong, as values that say where, what, and what to do.

A `CkptError` names the file, what was found, what was expected and how to go on.
`Problems` collects many of them, so that a user sees all that is wrong with a
checkpoint in one run, not one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_core.addresses import spelled
from ckpt_core.text import plural, printable

__all__ = [
    "BeingWritten",
    "CkptError",
    "FormatError",
    "Lines",
    "NotCarried",
    "Problems",
    "ProblemsFound",
    "Refusal",
    "StoreError",
    "TouchedSource",
    "UsageError",
    "WorkerError",
    "did_you_mean",
    "nearest",
    "plural",
]

_MOST_PROBLEMS = 1000
_MOST_LINES = 28
"""Lines of an error's text: a screen. The rest is counted, and `problems` and `to_json` have it."""


class Lines(tuple[str, ...]):
    """What was found, where it takes several lines: another error's text, or sentences to be read one by one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(self)


class CkptError(Exception):
    """A checkpoint, option or request that can't be served, explained.

    `problem` is one sentence; the other parts are optional and are printed on
    lines of their own. The parts are whole; as text, each is one line that is fit to be printed.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.found = None if found is None else found if isinstance(found, Lines) else str(found)
        self.expected = None if expected is None else str(expected)
        self.fix = fix
        super().__init__(problem)

    def __str__(self) -> str:
        lines = [printable(spelled(self.problem))]
        for label, text in (("file", self.file), ("found", self.found), ("expected", self.expected), ("fix", self.fix)):
            if isinstance(text, Lines):
                first, *others = map(printable, map(spelled, text))
                lines += [f"  {label}: {first}", *others]
            elif text is not None:
                lines.append(f"  {label}: {printable(spelled(text))}")
        return "\n".join(lines)

    def __reduce__(self):  # errors cross process boundaries, keyword arguments included
        return (_rebuild, (type(self), self.problem, self.__dict__))

    @classmethod
    def section(cls) -> str:
        """The section of docs/troubleshooting.md about errors of this class: `format-error`. A plugin's own class has that of the class it is made from."""
        own = next(kind for kind in cls.__mro__ if kind.__module__.startswith("ckpt_core."))
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", own.__name__).lower()

    @property
    def anchor(self) -> str:
        """The section about this error."""
        return self.section()

    def to_json(self) -> dict[str, object]:
        """The same parts as a JSON object, for `--json`."""
        parts = {
            "problem": self.problem,
            "file": self.file,
            "found": str(self.found) if isinstance(self.found, Lines) else self.found,
            "expected": self.expected,
            "fix": self.fix,
        }
        return {key: spelled(value) for key, value in parts.items() if value is not None}


def _rebuild(cls: type[CkptError], problem: str, state: dict) -> CkptError:
    error = cls.__new__(cls)
    Exception.__init__(error, problem)
    error.__dict__.update(state)
    return error


class UsageError(CkptError):
    """A request that is wrong in itself: an unknown option, a missing argument. Exit code 2."""

    exit_code = 2


class FormatError(CkptError):
    """Bytes that are not what their format says: truncated, overlapping, lying, or hostile."""


class TouchedSource(FormatError):
    """A file that is what it was by size and modification time, and that somebody touched while it was read: it may be another one."""


class BeingWritten(CkptError):
    """Another run is writing to the same destination at this moment, and this one has touched nothing."""


class Refusal(CkptError):
    """Something the target can't hold exactly. Refused by name rather than approximated.

    `facts` are the paths of the facts that it is about (`head.bias`), where it is about any: a source that explains one
    of them is quoted beside the refusal.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
        fact: str | Iterable[str] = (),
    ) -> None:
        super().__init__(problem, file=file, found=found, expected=expected, fix=fix)
        self.facts: tuple[str, ...] = (fact,) if isinstance(fact, str) else tuple(fact)


class NotCarried(Refusal):
    """The state of a training, or its fp32 masters, that is not there or can't be carried, where the model can.

    Asked for, it is this error; otherwise a state that stays behind is a loss.
    """


class WorkerError(CkptError):
    """A worker or a cluster that fails, or that sees other files or runs other code than this machine.

    It says nothing about the input, so what is done is kept.
    """


class StoreError(WorkerError):
    """A store of remote files that does not give what it should, or not to this user now. What is done is kept, too."""


class ProblemsFound(CkptError):
    """Several problems at once; `problems` holds each of them, but for the `more` that were only counted."""

    def __init__(self, subject: str, problems: Iterable[CkptError], more: int = 0) -> None:
        self.problems, self.more = list(problems), more
        count = len(self.problems) + more
        shown = f", of which the first {len(self.problems)} are kept" if more else ""
        super().__init__(f"{subject}: {count} {'problem' if count == 1 else 'problems'}{shown}")

    def __str__(self) -> str:
        lines = [printable(self.problem)]
        for count, problem in enumerate(self.problems):
            text = f"- {problem}".replace("\n", "\n  ").split("\n")
            if count and len(lines) + len(text) > _MOST_LINES:
                left = len(self.problems) - count + self.more
                lines.append(f"- and {left} {'problem' if left == 1 else 'problems'} more: --json lists them")
                break
            lines += text
        return "\n".join(lines)

    @property
    def anchor(self) -> str:
        """That of its problems, if all are of one kind."""
        kinds = {one.anchor for one in self.problems}
        return kinds.pop() if len(kinds) == 1 else super().anchor

    def to_json(self) -> dict[str, object]:
        body = {"problem": self.problem, "problems": [problem.to_json() for problem in self.problems]}
        return body | ({"more": self.more} if self.more else {})


class Problems:
    """A list of problems that is raised at once. Of the problems of a hostile file the first thousand are kept.

    >>> problems = Problems("reading model")
    >>> problems.add(CkptError("tensor 'a' is missing"))
    >>> problems.raise_any()
    Traceback (most recent call last):
    ...
    ckpt_core.errors.CkptError: tensor 'a' is missing
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.found: list[CkptError] = []
        self.more = 0
        self._said: set[tuple[object, ...]] = set()

    def add(self, problem: CkptError) -> None:
        """Note a problem; one that says the same as an earlier one is noted once."""
        if isinstance(problem, ProblemsFound):
            self.more += problem.more
        for one in problem.problems if isinstance(problem, ProblemsFound) else [problem]:
            says = (one.problem, one.file, one.found, one.expected, one.fix)
            if len(self.found) >= _MOST_PROBLEMS:
                self.more += 1
            elif says not in self._said:
                self._said.add(says)
                self.found.append(one)

    def raise_any(self) -> None:
        """Raise what was collected: the problem itself if it is alone, else all of them together."""
        if len(self.found) == 1 and not self.more:
            raise self.found[0]
        if self.found:
            raise ProblemsFound(self.subject, self.found, self.more)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, for "did you mean".

    >>> nearest("num_atention_heads", ["num_attention_heads", "hidden_size"])
    'num_attention_heads'
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str | None:
    """A `fix` sentence that proposes the nearest known name, or `otherwise`."""
    guess = nearest(name, known)
    return f"did you mean {guess!r}?" if guess else (otherwise or None)
