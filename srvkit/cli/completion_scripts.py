"""The completion scripts themselves, one function for each shell.

They know commands as they are described here, and nothing of argparse.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_BASH = """\
# Completion of srvkit for bash, made by: srvkit completion bash

_srvkit_offer() {{ # WORDS FILES: what fits the word that is being typed
    local IFS=$'\\n'
    case ${{2-}} in
        toml) COMPREPLY=($(compgen -f -X '!*.toml' -- "$word"; compgen -d -- "$word")) ;;
        folder) COMPREPLY=($(compgen -d -- "$word")) ;;
        any) COMPREPLY=($(compgen -f -- "$word")) ;;
        *) COMPREPLY=($(IFS=' '; compgen -W "$1" -- "$word")) ;;
    esac
    [[ -z ${{2-}} ]] || compopt -o filenames 2>/dev/null
}}

_srvkit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command= position=0 index
    for ((index = 1; index < COMP_CWORD; index++)); do
        case "$command ${{COMP_WORDS[index]}}" in
            {with_value}) ((index += 1)) ;;
            *' '-*) ;;
            ' '*) command=${{COMP_WORDS[index]}} ;;
            *) ((position += 1)) ;;
        esac
    done
    COMPREPLY=()
    case "$command $previous" in
{values}    esac
    if [[ $word == -* || -z $command ]]; then
        case $command in
{options}        esac
        return
    fi
    case "$command $position" in
{positionals}    esac
}}

complete -F _srvkit srvkit
"""

_ZSH = """\
#compdef srvkit
# Completion of srvkit for zsh, made by: srvkit completion zsh

_srvkit() {{
    local curcontext=$curcontext state line
    local -a commands
    typeset -A opt_args
    commands=(
{commands}    )
    _arguments -C '(- *)'{{-h,--help}}'[show help]' '(- *)'{{-V,--version}}'[show the version]' \\
        '1:command:->command' '*::argument:->argument'
    case $state in
        command) _describe command commands ;;
        argument)
            curcontext=${{curcontext%:*:*}}:srvkit-$words[1]:
            case $words[1] in
{arguments}            esac ;;
    esac
}}

if [[ $funcstack[1] == _srvkit ]]; then
    _srvkit "$@"
else
    compdef _srvkit srvkit
fi
"""


@dataclass(frozen=True)
class Argument:
    """An option or a positional argument: how it is called, and what may stand for its value."""

    flags: tuple[str, ...]  # none where it is positional
    help: str
    metavar: str = ""  # empty where there is no value
    words: tuple[str, ...] = ()  # what the value may be, where that is known
    files: str = ""  # "toml", "folder" or "any", where it is one
    repeats: bool = False


@dataclass(frozen=True)
class Command:
    """One command with its options and, in order, its positional arguments."""

    name: str
    help: str
    options: tuple[Argument, ...] = ()
    positionals: tuple[Argument, ...] = ()


def bash(commands: Sequence[Command]) -> str:
    """Return the script for bash; it needs no package of completions."""
    options = [(one, option) for one in commands for option in one.options]
    with_value = [
        f"'{one.name} {flag}'" for one, option in options if option.metavar for flag in option.flags
    ]
    values, positionals = [], []
    for one, option in options:
        if option.metavar:
            patterns = "|".join(f"'{one.name} {flag}'" for flag in option.flags)
            values.append(f"        {patterns}) {_bash_offer(option)}; return ;;\n")
    for one in commands:
        for position, argument in enumerate(one.positionals):
            pattern = f"'{one.name} '*" if argument.repeats else f"'{one.name} {position}'"
            positionals.append(f"        {pattern}) {_bash_offer(argument)} ;;\n")
    lines = [f"            '') {_offer_words(['-h', '--help', '-V', '--version', *_names(commands)])} ;;\n"]
    lines += [f"            {one.name}) {_offer_words(_flags(one.options))} ;;\n" for one in commands]
    return _BASH.format(
        with_value="|".join(with_value),
        values="".join(values),
        options="".join(lines),
        positionals="".join(positionals),
    )


def _bash_offer(argument: Argument) -> str:
    if argument.files:
        return f"_srvkit_offer '' {argument.files}"
    return _offer_words(argument.words) if argument.words else "COMPREPLY=()"


def _offer_words(words: Iterable[str]) -> str:
    return f"_srvkit_offer {shlex.quote(' '.join(words))}"


def _names(commands: Iterable[Command]) -> list[str]:
    return [one.name for one in commands]


def _flags(options: Iterable[Argument]) -> Iterator[str]:
    for option in options:
        yield from option.flags


def zsh(commands: Sequence[Command]) -> str:
    """Return the script for zsh, as a file of $fpath or to be sourced after `compinit`."""
    described = "".join(f"        {shlex.quote(f'{one.name}:{one.help}')}\n" for one in commands)
    arguments = []
    for one in commands:
        specifications = [*map(_zsh_option, one.options), *_zsh_positionals(one.positionals)]
        arguments.append(f"                {one.name}) _arguments {' '.join(specifications)} ;;\n")
    return _ZSH.format(commands=described, arguments="".join(arguments))


def _zsh_option(option: Argument) -> str:
    text = option.help.replace("[", "(").replace("]", ")").replace(":", r"\:")
    value = f":{option.metavar}:{_zsh_value(option)}" if option.metavar else ""
    if len(option.flags) == 1:
        return shlex.quote(f"*{option.flags[0]}[{text}]{value}")
    flags = ",".join(option.flags)
    return f"{shlex.quote('(' + flags.replace(',', ' ') + ')')}{{{flags}}}{shlex.quote(f'[{text}]{value}')}"


def _zsh_positionals(positionals: Iterable[Argument]) -> Iterator[str]:
    for position, argument in enumerate(positionals, 1):
        place = "*" if argument.repeats else position
        yield shlex.quote(f"{place}:{argument.metavar}:{_zsh_value(argument)}")


def _zsh_value(argument: Argument) -> str:
    files = {"toml": '_files -g "*.toml"', "folder": "_files -/", "any": "_files"}
    return files.get(argument.files) or f"({' '.join(argument.words)})"


def fish(commands: Sequence[Command]) -> str:
    """Return the script for fish."""
    lines = ["# Completion of srvkit for fish, made by: srvkit completion fish", "complete -c srvkit -f"]
    lines += [
        "complete -c srvkit -n __fish_use_subcommand -s h -l help -d 'show help'",
        "complete -c srvkit -n __fish_use_subcommand -s V -l version -d 'show the version'",
    ]
    for one in commands:
        lines.append(f"complete -c srvkit -n __fish_use_subcommand -a {one.name} -d {_fish_quoted(one.help)}")
        start = f"complete -c srvkit -n '__fish_seen_subcommand_from {one.name}'"
        for option in one.options:
            flags = (f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            value = f" -x{_fish_words(option)}" if option.metavar else ""
            lines.append(f"{start} {' '.join(flags)}{value} -d {_fish_quoted(option.help)}")
        lines += [f"{start}{words}" for words in map(_fish_words, one.positionals) if words]
    return "\n".join([*lines, ""])


def _fish_words(argument: Argument) -> str:
    files = {
        "toml": "(__fish_complete_suffix .toml)",
        "folder": "(__fish_complete_directories)",
        "any": "(__fish_complete_path)",
    }
    words = files.get(argument.files) or " ".join(argument.words)
    return f" -a {_fish_quoted(words)}" if words else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
