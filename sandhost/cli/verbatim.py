"""Commands whose last arguments are somebody else's: a guest's."""

from __future__ import annotations

import re

import click

__all__ = ["VerbatimCommand"]

_NUMBER = re.compile(r"-(?:[0-9.].*|inf(?:inity)?|nan)", re.IGNORECASE)


class VerbatimCommand(click.Command):
    """Takes options before and after its arguments; negative numbers are arguments, not options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse unknown options, so that a mistyped limit is not handed to the guest instead."""
        verbatim = len(args) - args.index("--") - 1 if "--" in args else 0
        rest = super().parse_args(ctx, args)
        given: list[str] = []
        for parameter in self.params:
            if isinstance(parameter, click.Argument):
                value = ctx.params.get(parameter.name or "")
                given += value if isinstance(value, tuple) else [str(value)] if value else []
        for argument in given[: max(len(given) - verbatim, 0)]:
            if argument.startswith("-") and argument != "-" and not _NUMBER.fullmatch(argument):
                known = [name for parameter in self.params for name in parameter.opts]
                raise _unknown_option(argument, known, ctx)
        return rest


def _unknown_option(argument: str, known: list[str], ctx: click.Context) -> click.UsageError:
    import difflib

    option = argument.partition("=")[0]
    close = difflib.get_close_matches(option, known, 1)
    meant = f"did you mean {close[0]}?" if close else "options for the guest stand after '--'"
    if ctx.parent is not None and any(option in p.opts for p in ctx.parent.command.params):
        meant = f"it stands before the command: sandhost {option} {ctx.info_name} …"
    return click.UsageError(f"no such option {option}; {meant}", ctx)
