"""`ckpt completion`: the script by which a shell completes commands, options, formats, their options and families."""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from ckpt_core.cli.mistakes import OneOf
from ckpt_core.cli.output import say


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that completes commands, options, formats, values of -o and families in SHELL.

    \b
    eval "$(ckpt completion bash)"       # in ~/.bashrc
    eval "$(ckpt completion zsh)"        # in ~/.zshrc, after compinit
    ckpt completion fish | source        # in ~/.config/fish/config.fish
    """
    from ckpt_core.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    for line in kind(cli, {}, "ckpt", "_CKPT_COMPLETE").source().splitlines():
        say(line)


_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line
    COMPREPLY=()
    for line in $(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1"); do
        case "${line%%%%,*}" in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("${line#*,}") ;;
        esac
    done
    # after `key=` comes its value, and no space
    [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class BashWithValues(BashComplete):
    """Bash takes `=` for a word of its own (COMP_WORDBREAKS): `-o layout=n` arrives as four words, and what is offered stands after `=`."""

    source_template = _BASH

    # Click asks for the version of whichever bash is in PATH, which starts a process at every press of a key.
    @staticmethod
    def _check_version() -> None:
        return

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        joined: list[str] = []
        for word in [*args, incomplete]:
            if joined and (word == "=" or joined[-1].endswith("=")):
                joined[-1] += word
            else:
                joined.append(word)
        self._kept = len(joined[-1]) - len(incomplete) if joined[-1] != incomplete and incomplete != "=" else 0
        if incomplete == "=":
            self._kept = len(joined[-1])
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        return super().format_completion(CompletionItem(item.value[self._kept :], item.type))


_ZSH = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a plain described keys shown
    local kind value help width
    for kind value help in "${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(complete_var)s=zsh_complete %(prog_name)s)}"; do
        case "$kind" in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ "$value" == *= ]]; then
                    width=$(( $#value > 30 ? $#value : 30 ))
                    keys+=("$value") shown+=("${(r:width:)value} -- $help")
                elif [[ "$help" == "_" ]]; then plain+=("$value")
                else described+=("${value//:/\\:}:$help")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    # after `key=` comes its value, and no space
    (( $#keys )) && compadd -U -V unsorted -S "" -l -d shown -a keys
}
compdef %(complete_func)s %(prog_name)s
"""


class ZshWithValues(ZshComplete):
    """Zsh takes `key=value` for one word."""

    source_template = _ZSH


add_completion_class(BashWithValues, "bash")
add_completion_class(ZshWithValues, "zsh")
