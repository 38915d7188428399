"""Parse the command line into a config dataclass; turn errors into one line and an exit status."""

from __future__ import annotations

import difflib
import glob
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from ssl_vivit import command
from ssl_vivit.errors import UserError
from ssl_vivit.files import read_whole
from ssl_vivit.first_failure import is_first, where
from ssl_vivit.nested_text import LONGEST_YAML, read_yaml_text
from ssl_vivit.training.config import TrainingConfig, run_directory, to_plain
from ssl_vivit.training.signals import unwound_by_sigterm

T = TypeVar("T")

# Names of settings in many other programs → their names here.
_COMMON_NAMES = {"lr": "learning_rate", "wd": "weight_decay", "warmup": "warmup_steps"}
# Settings of other programs that choose the device, for which there is no setting here.
_DEVICE_NAMES = {"device", "devices", "gpu", "gpus", "cpu"}

# A message quotes at most this many characters of a wrong value.
_LONGEST_VALUE = 80

_UNKNOWN_OPTION = re.compile(r"[Uu]nrecognized arguments: *(.*)", re.DOTALL)
_UNKNOWN_IN_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
_UNKNOWN_AT_TOP = re.compile(r"Option '([\w.]+)' is not accepted")
_UNION = re.compile(
    r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes '
    r"Subtypes: \[(.*?)\] Errors: .*Given value: (.*)"
)


def parse(
    config_class: type[T],
    argv: Sequence[str] | None = None,
    *,
    preset: Path | None = None,
    first: str | None = None,
) -> T:
    """Read a config dataclass from ``--config`` files and dotted options.

    Options override ``--config`` files, in whatever order they are given. ``--config file.yaml``
    may be repeated; a later file overrides an earlier one. ``--print_config`` prints the resolved
    config. Settings of ``training`` may be given without that prefix: ``--resume auto`` is
    ``--training.resume auto``. Lists may be given as several words: ``--seeds 1 2``. An error
    prints one line that names the allowed settings or values, and exits with status 2.

    Args:
        config_class: a dataclass whose fields all have defaults; nested dataclasses become dotted
            options, dictionaries take ``--a.dictionary.key value``. A field's metadata may name
            short forms of its settings: with ``{"--encoder": "path"}`` on a field ``encoder``,
            ``--encoder X`` is short for ``--encoder.path X``.
        argv: the arguments; by default the arguments of the process.
        preset: the config file that is read if no ``--config`` is given. The files beside it are
            presets too: ``--config NAME`` reads ``NAME.yaml`` in that folder.
        first: a setting that may be given as the first word, without its name: with ``model``,
            ``recipe.py X`` means ``recipe.py --model X``.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if first is not None and given and not given[0].startswith("-"):
        given.insert(0, f"--{first}")
    files, arguments = _config_files(given)
    paths = [_config_path(name, preset) for name in files]
    contents = [_file_content(path) for path in paths]
    shown = paths or ([] if preset is None else [preset])
    parser = ArgumentParser(
        prog=_program(),
        description=(config_class.__doc__ or "").strip().splitlines()[0],
        exit_on_error=False,
        allow_abbrev=False,
        # --help shows the values of these files as the defaults.
        default_config_files=[glob.escape(str(path)) for path in shown],
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the options below, or the name of a preset; may be repeated",
    )
    parser.add_class_arguments(config_class)
    types = _types(config_class)
    keys = list(types)
    short = {
        option: f"--{entry.name}.{setting}"
        for entry in fields(config_class)  # type: ignore[arg-type]
        for option, setting in entry.metadata.items()
    }
    _show_short_forms(parser, short)
    arguments = [_in_full(word, keys, short) for word in arguments]
    lists, entries, or_value = _lists(types, arguments)
    arguments = with_lists(arguments, *lists, or_one=or_value)
    # Dictionary entries have no declared type, so they are parsed as YAML.
    arguments = with_lists(arguments, *entries, or_one=entries, joined=_yaml_list)
    try:
        _refuse_files_of_groups(types, contents, arguments)
        namespace = parser.parse_args(arguments, env=False)
        namespace.pop("config")
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        config = config_class(**vars(instantiate(namespace)))
    except (ArgumentError, ValueError, TypeError, OverflowError) as error:
        mistake = _explain(str(error), keys, [option.lstrip("-") for option in short])
        _fail(_of_another_recipe(paths, mistake) or mistake, status=2)
        raise AssertionError("unreachable") from error
    loop = getattr(config, "training", None)
    if isinstance(loop, TrainingConfig):
        _require_run_dir(paths, loop)
    if argv is not None:  # called by a program: print nothing
        return config
    if isinstance(loop, TrainingConfig):
        command.script = "/".join(Path(sys.argv[0]).parts[-2:])
        command.started_by = command.starting(sys.argv)
        command.continued_by = command.continuing(sys.argv, str(run_directory(loop)))
    if paths:
        _say(f"config   {', '.join(map(str, paths))}")
    elif preset is not None:
        _say(f"config   {preset.stem}, the preset for the sample data (no --config given)")
    return config


def _program() -> str | None:
    """Return the words that started a package, as in ``python -m PACKAGE``; None for a script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if Path(sys.argv[0]).name != "__main__.py" or spec is None:
        return None
    return f"python -m {spec.parent}"


def with_settings(config: T, settings: Mapping[str, Any], told: str = "") -> T:
    """Return a copy of a config dataclass in which some settings have other values.

    Args:
        config: an instance of a dataclass that :func:`parse` reads.
        settings: new values of settings by dotted name. Values are as in a YAML file.
        told: text at the start of error messages, before the name of the setting.

    Raises:
        ValueError: for an unknown setting or a wrong value.
    """
    types = _types(type(config))
    plain = to_plain(config)
    for key, value in settings.items():
        # The keys of a dictionary setting are free, so they are not in ``types``.
        inside = any(
            key.startswith(f"{name}.") for name, hint in types.items() if dict in _kinds(hint)
        )
        if key not in types and not inside:
            raise ValueError(f"{told}{_unknown(key, [*types], [])}")
        *parents, last = key.split(".")
        place = plain
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(config))
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return type(config)(**vars(instantiate(parser.parse_object(plain))))
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{told}{_explain(str(error), [*types], [])}") from None


def _show_short_forms(parser: ArgumentParser, short: Mapping[str, str]) -> None:
    """Describe short forms of options, such as ``--encoder`` for ``--encoder.path``, in --help.

    jsonargparse would otherwise describe the name of a nested dataclass as the path of a config
    file.
    """
    for action in parser._actions:
        for option in short.keys() & {*action.option_strings}:
            setting = short[option].rpartition(".")[2]
            action.metavar = "DIR_OR_NAME" if setting == "path" else setting.upper()
            action.help = f"short for {short[option]}"


def _of_another_recipe(paths: Sequence[Path], mistake: str) -> str | None:
    """Return a message if a config file was written by another recipe, else None.

    Args:
        paths: the config files.
        mistake: message about a wrong setting. Its hints apply to this recipe and are left out.
    """
    for path in paths:
        script = command.writer_of(path)
        if script is not None and Path(script).name != Path(sys.argv[0]).name:
            return (
                f"--config {path} was written by {script}, which has other settings "
                f"({mistake.partition(';')[0]}); start {script} with it, or give another --config"
            )
    return None


def _require_run_dir(paths: Sequence[Path], loop: TrainingConfig) -> None:
    """Exit with an error if ``--resume auto`` cannot know which run to continue.

    This happens if ``--config`` names the config.yaml of a run. That file does not contain the
    run's directory, so ``--run_dir`` must be given as well.
    """
    runs = [
        p.parent for p in paths if p.name == "config.yaml" and (p.parent / "checkpoints").is_dir()
    ]
    if runs and loop.run_dir is None and loop.resume == "auto":
        _fail(
            f"--config {runs[-1] / 'config.yaml'} does not name the run's directory; add --run_dir "
            f"{runs[-1]} to continue that run, or another --run_dir to start a new run",
            status=2,
        )


def _config_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into the files given by ``--config`` and all other arguments."""
    files, others = [], []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--config":
            others.append(word)
            continue
        file = value if equals else next(words, "--")
        if not file or file.startswith("--"):
            _fail("--config names no file; give a YAML file or the name of a preset", status=2)
        files.append(file)
    return files, others


def _config_path(name: str, preset: Path | None) -> Path:
    """Return the path of a config file, given as a path or as the name of a preset."""
    path = Path(name)
    if path.exists() or preset is None:
        return path
    # All presets of a recipe share their first word: simclr_vivit_small, simclr_vivit_base …
    family = preset.stem.partition("_")[0]
    shipped = sorted(file.stem for file in preset.parent.glob(f"{family}_*.yaml"))
    if path.name.removesuffix(".yaml") in shipped and path.parent in (Path(), Path("configs")):
        return preset.parent / f"{path.name.removesuffix('.yaml')}.yaml"
    other = preset.parent / f"{path.name.removesuffix('.yaml')}.yaml"
    if other.is_file() and path.parent in (Path(), Path("configs")):
        _fail(
            f"--config {name} is a preset of {_recipes_of(other)}; presets of this recipe: "
            f"{', '.join(shipped)}",
            status=2,
        )
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), shipped, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    _fail(
        f"--config {name}: there is no such file, and no preset of that name; {hint}presets of "
        f"this recipe: {', '.join(shipped)}",
        status=2,
    )
    raise AssertionError("unreachable")


def _recipes_of(preset: Path) -> str:
    """Return the recipes to which a preset belongs, such as ``recipes/simclr_clevrer.py``.

    The file names of these recipes contain the first word of the preset's name, such as ``simclr``
    of ``simclr_vivit_small``.
    """
    folder, family = preset.parent.parent, preset.stem.partition("_")[0]
    scripts = sorted(p for p in folder.glob("*.py") if family in p.stem.split("_"))
    return " and ".join(f"{folder.name}/{p.name}" for p in scripts) or "another recipe"


def _lists(
    types: Mapping[str, Any], arguments: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Find the options that may be followed by several words.

    Args:
        types: type of each setting by dotted name.
        arguments: arguments of the command line.

    Returns:
        Three lists of options. The first has the options of list settings. The second has those
        among the arguments that set an entry of a dictionary setting, ``--a.dictionary.key``. The
        third has the options of list settings that may also be a single value instead of a list.
    """
    kinds = {f"--{key}": _kinds(hint) for key, hint in types.items()}
    inside = tuple(f"{option}." for option, found in kinds.items() if dict in found)
    entries = [word for word in arguments if word.startswith(inside) and "=" not in word]
    lists = [option for option, found in kinds.items() if found & {list, tuple}]
    return lists, entries, [option for option in lists if kinds[option] & {str, int, float}]


def _yaml_list(words: list[str]) -> str:
    return f"[{', '.join(words)}]"


def _file_content(path: Path) -> Any:
    """Read a config file, or exit if it contains no mapping; settings are checked later."""
    content = None
    try:
        content = read_yaml_text(read_whole(path, LONGEST_YAML).decode())
    except OSError as error:
        _fail(f"--config {path} cannot be read: {error.strerror}", status=2)
    except ValueError as error:
        _fail(f"--config {path} is not a valid YAML file: {error}", status=2)
    if not isinstance(content, dict):
        _fail(f"--config {path} contains no settings; write each as `name: value`", status=2)
    return content


def _refuse_files_of_groups(
    types: Mapping[str, Any], contents: Sequence[Any], arguments: Sequence[str]
) -> None:
    """Refuse a value other than a mapping for a group of settings.

    jsonargparse would take such a value as the name of a file to open or of a class to import.

    Raises:
        ValueError: if a group has another value, or a setting is unknown. The message names it.
    """
    for content in contents:
        _check_group(types, content, "")
    words = [*arguments, ""]
    for word, following in itertools.pairwise(words):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--")
        if not option.startswith("--") or not _is_group(types, name):
            continue
        try:
            content = read_yaml_text(value if equals else following)
        except ValueError:
            content = None
        _check_group(types, content, f"{name}.")


def _check_group(types: Mapping[str, Any], content: Any, prefix: str) -> None:
    if not isinstance(content, Mapping):
        name = prefix.rstrip(".")
        first = next(key for key in types if key.startswith(prefix))
        raise ValueError(
            f"{name} is a group of settings and takes neither a value nor a file; give its "
            f"settings one by one, such as --{first}, or in a file by --config FILE"
        )
    for key, value in content.items():
        name = f"{prefix}{key}"
        if _is_group(types, name):
            _check_group(types, value, f"{name}.")
        elif not any(name == known or name.startswith(f"{known}.") for known in types):
            raise ValueError(f"Option '{name}' is not accepted")


def _is_group(types: Mapping[str, Any], name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in types)


def with_lists(
    arguments: Sequence[str],
    *options: str,
    or_one: Collection[str] = (),
    joined: Callable[[list[str]], str] = json.dumps,
) -> list[str]:
    """Rewrite ``--option a b`` as ``--option ["a", "b"]``, which jsonargparse can read.

    Args:
        arguments: arguments of the command line.
        options: names of the options that take lists.
        or_one: names of those options that also take a single value. A single word after them is
            not changed.
        joined: function that writes a list of words as one text.
    """
    words: list[str] = []
    taken: list[str] | None = None
    for word in [*arguments, "--"]:
        if word.startswith("--") and taken is not None:
            one = len(taken) == 1 and (words[-1] in or_one or taken[0].startswith(("[", "null")))
            words.append(taken[0] if one else joined(taken))
            taken = None
        if taken is not None:
            taken.append(word)
        else:
            words.append(word)
            if word in options:
                taken = []
    return words[:-1]


def run(main: Callable[[], object]) -> None:
    """Call ``main``, and print an error that a user can fix as one line.

    A training run that SIGTERM or SIGUSR1 ends exits with status 0, since it has saved a
    checkpoint; a batch system may requeue it. If SSL_VIVIT_TRACEBACK is set, errors are raised with
    their traceback.

    Raises:
        SystemExit: with status 2 after an error line, 130 after Ctrl-C, and 143 after SIGTERM
            outside of :func:`~ssl_vivit.training.fit`.
    """
    try:
        with unwound_by_sigterm():
            main()
    except (UserError, ValueError) as error:
        if os.environ.get("SSL_VIVIT_TRACEBACK"):
            raise
        rank = getattr(error, "rank", None)
        if is_first(rank):
            print(_error_line(str(error), where(rank)), file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        mend = f"; continue with {command.continued_by}" if command.continued_by else ""
        _fail(f"interrupted; files saved before are kept{mend}", status=130)


def _fail(message: str, status: int) -> None:
    _say(_error_line(message))
    sys.exit(status)


def _error_line(message: str, place: str = "") -> str:
    return f"error{place}: {' '.join(message.split())}"


def _say(line: str) -> None:
    """Print a line on standard error, only in the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _types(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of each setting of a config dataclass, by dotted name of the setting."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(config_class).items():
        if is_dataclass(hint):
            types |= _types(hint, f"{prefix}{name}.")
        else:
            types[f"{prefix}{name}"] = hint
    return types


def _kinds(hint: Any) -> set[Any]:
    """Return the types of a union without their arguments: {list, str} for ``list[str] | str``.

    The result for a type that is not a union contains only that type.
    """
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(part) or part for part in parts}


def _in_full(word: str, keys: list[str], short: dict[str, str]) -> str:
    """Expand a short form, or a setting of ``training`` without that prefix, to the full option."""
    option, equals, value = word.partition("=")
    name = option.removeprefix("--")
    if option.startswith("--") and name not in keys and f"training.{name}" in keys:
        option = f"--training.{name}"
    return short.get(option, option) + equals + value


def _explain(message: str, keys: list[str], short: list[str]) -> str:
    """Return a line that names the correct option or value.

    Args:
        message: error message of jsonargparse.
        keys: dotted names of all settings.
        short: short forms of settings.
    """
    if match := _UNKNOWN_OPTION.search(message):
        words = match[1].split()
        option = next((word for word in words if word.startswith("--")), None)
        if option is None:
            return f"unexpected argument {words[0]}; give settings as --name value"
        return _unknown(option.lstrip("-").split("=")[0], keys, short)
    if match := _UNKNOWN_IN_GROUP.search(message):
        return _unknown(f"{match[1]}.{match[2]}", keys, short)
    if match := _UNKNOWN_AT_TOP.search(message):
        return _unknown(match[1], keys, short)
    line = " ".join(message.split())
    if match := _UNION.search(line):
        kinds = re.sub(r"<class '(\w+)'>", r"\1", match[2]).replace("NoneType", "null")
        kinds = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", kinds)
        kinds = kinds.replace("tuple[int, int]", "two integers")
        hint = ""
        if match[1].endswith("_size") and "two integers" in kinds:
            hint = f"; give height and width in pixels, such as --{match[1]} 96 96"
        kinds = kinds.replace("two integers, null", "two integers, or null")
        one_of = "" if kinds.startswith("two integers") else "one of "
        return f"{match[1]}: expected {one_of}{kinds}; got {_shortened(match[3])}{hint}"
    line = re.sub(r'Parser key "([\w.]+)":', r"\1:", line)
    line = re.sub(r"Expected a <class '(\w+)'>\.", r"expected \1;", line)
    line = re.sub(r"Expected a typing\.Literal\[(.*?)\]\.", r"expected one of \1;", line)
    line = re.sub(r"Expected a ([^.]+)\.", r"expected \1;", line)
    head, got, value = line.partition("Got value: ")
    return head + got.replace("Got value:", "got") + _shortened(value)


def _shortened(value: str) -> str:
    """Shorten a wrong value, which may be a whole section of a config file, for a message."""
    return f"{value[:_LONGEST_VALUE]} …" if len(value) > _LONGEST_VALUE else value


def _unknown(key: str, keys: list[str], short: list[str]) -> str:
    """Return an error message for an unknown setting: the most similar name and the allowed names."""
    if key.split(".")[-1] in _DEVICE_NAMES:
        return (
            f"unknown setting {key}; a GPU is used if there is one: set CUDA_VISIBLE_DEVICES=1 in the "
            "environment to use GPU 1, or CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    parents = key.split(".")[:-1]
    while parents and not any(known.startswith(".".join(parents) + ".") for known in keys):
        parents.pop()
    prefix = "".join(f"{part}." for part in parents)
    allowed = sorted(
        {known[len(prefix) :].split(".")[0] for known in keys if known.startswith(prefix)}
    )
    allowed = [f"{prefix}{name}" for name in allowed]
    bare = [known.removeprefix("training.") for known in keys if known.startswith("training.")]
    near = difflib.get_close_matches(key, [*keys, *allowed, *bare, *short], n=1, cutoff=0.75)
    last = key.split(".")[-1]
    if not near or last in _COMMON_NAMES:  # look for the name in nested groups
        wanted = f".{_COMMON_NAMES.get(last, last)}"
        near = [known for known in [*bare, *keys] if known.endswith(wanted)]
    if near and f"training.{near[0]}" in allowed:  # write it as in the list of allowed names
        near = [f"training.{near[0]}"]
    if near and not {near[0], near[0].split(".")[0]} & {*allowed}:
        return f"unknown setting {key}; did you mean {near[0]}? --help lists all settings"
    hint = f"; did you mean {near[0]}?" if near else ";"
    return f"unknown setting {key}{hint} allowed here: {', '.join(allowed)}"
