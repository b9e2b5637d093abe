"""YAML to typed Structs, collecting every fault with its path instead of stopping at the first."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import yaml
from msgspec import Struct
from msgspec.structs import FieldInfo

T = TypeVar("T")
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
MAX_SECRET_BYTES = 64 * 1024
SHOWN = 200
FASTEST: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_FAST_DEPTH = 100
MAX_NODES = 1_000_000
"""More is a mistake, or an attack by aliases of aliases."""

FILES: ContextVar[set[Path] | None] = ContextVar("FILES", default=None)
"""Where `files_read` collects."""


class Fault(Struct, frozen=True):
    """One thing wrong in a configuration file. `path` is such as `tenants[0].keys[1].hash`."""

    path: str
    message: str
    leaves_rest: bool = False
    """Whether what is around it can be read without it."""

    def __str__(self) -> str:
        return f"{self.path or 'the file'}: {self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used; `faults` has every reason."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        lines = "".join(f"\n  {fault}" for fault in faults)
        super().__init__(f"{path}: {len(faults)} fault{'s' * (len(faults) != 1)}{lines}")
        self.faults = faults


class Secret:
    """A text that never prints."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def parse(cls, value: object) -> Secret:
        """A string, or `{file: PATH}` without its last line end. ValueError hides the value."""
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and set(value) == {"file"}:
            return cls(read_secret(Path(str(value["file"]))))
        raise ValueError("expected a string or {file: PATH}")

    def __reduce__(self) -> NoReturn:
        """A pickle would hold the text in the clear."""
        raise TypeError("a Secret cannot be pickled")

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(*****)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


def read_secret(path: Path) -> str:
    """At most 64 KiB. Raises ValueError if it cannot be read, or is not UTF-8."""
    try:
        content = read_regular(path, MAX_SECRET_BYTES + 1)
    except OSError as fault:
        raise ValueError(f"cannot read {path}: {fault.strerror}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{path} is longer than {MAX_SECRET_BYTES} bytes")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


def read_regular(path: Path, limit: int = -1) -> bytes:
    """Raises OSError; a pipe or a device is not opened, as it could block its reader for ever."""
    files = FILES.get()
    if files is not None:
        files.add(path)
    mode = path.stat().st_mode
    if not S_ISREG(mode) and not S_ISDIR(mode):  # the system has words of its own for a folder
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        return file.read(limit)


@contextmanager
def files_read() -> Iterator[set[Path]]:
    """Every file that is read meanwhile, or that should have been: a change of one matters."""
    files: set[Path] = set()
    token = FILES.set(files)
    try:
        yield files
    finally:
        FILES.reset(token)


class FromEnvironment(str):
    """A value that came from the environment, where every number is written as text."""

    __slots__ = ()


REPORTED = object()
"""Stands for a value whose fault is known already."""


class Strictness(yaml.constructor.SafeConstructor):
    """YAML's safe subset; a repeated key is an error, and so is half a character.

    Only `true` and `false` are booleans, as in YAML 1.2: `off` is the name of a mode.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag != "tag:yaml.org,2002:bool" or first in "tTfF"
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"the key {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:  # noqa: ANN401
        value: Any = super().construct_scalar(node)
        if isinstance(value, str) and HALF_CHARACTER.search(value):
            problem = "half a character; write it as itself instead of by two escapes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


class FastLoader(Strictness, FASTEST):  # type: ignore[misc]  # which it is, is known here alone
    """In C, whose stack nobody watches: deep nesting is not for it."""

    _depth = 0

    def descend_resolver(self, *place: Any) -> None:  # noqa: ANN401
        self._depth += 1
        if self._depth > MAX_FAST_DEPTH:
            raise yaml.YAMLError
        super().descend_resolver(*place)

    def ascend_resolver(self) -> None:
        self._depth -= 1
        super().ascend_resolver()


class UniqueKeyLoader(Strictness, yaml.SafeLoader):
    """In Python, with Python's words for what is wrong."""


def parsed(text: str) -> object:
    """By libyaml where PyYAML has it: a fifth of the time. Raises YAMLError in the same words."""
    with suppress(yaml.YAMLError):
        return yaml.load(text, FastLoader)  # noqa: S506 - a subclass of CSafeLoader
    return yaml.load(text, UniqueKeyLoader)  # noqa: S506 - a subclass of SafeLoader


def read_yaml(
    path: Path, environment: Mapping[str, str], faults: list[Fault], where: str = ""
) -> object:
    """Parse a file and fill in `${NAME}`; faults are added to `faults`, below `where`."""
    try:
        document = parsed(read_regular(path).decode())
        if expanded(document, {}) > MAX_NODES:
            faults.append(Fault(where, f"{path} has more than {MAX_NODES} values"))
            return REPORTED
        return beside(fill_in(document, environment, where, faults), path.parent)
    except OSError as fault:
        faults.append(Fault(where, f"cannot read {path}: {fault.strerror}"))
    except UnicodeDecodeError:
        faults.append(Fault(where, f"{path} is not UTF-8 text"))
    except RecursionError:
        faults.append(Fault(where, f"{path} is nested too deeply"))
    except yaml.YAMLError as fault:
        faults.append(Fault(where, f"not YAML: {described(fault)}"))
    except (ValueError, LookupError, TypeError) as fault:  # a date or number that is none
        faults.append(Fault(where, f"not YAML: {str(fault)[:SHOWN]}"))
    return REPORTED


def beside(value: object, folder: Path) -> object:
    """Make the relative paths of secrets' files start at the configuration file."""
    if isinstance(value, dict):
        if set(value) == {"file"} and isinstance(value["file"], str):
            return {"file": str(folder / value["file"])}
        return {key: beside(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [beside(item, folder) for item in value]
    return value


def expanded(value: object, known: dict[int, int]) -> int:
    """Number of values once every alias is written out; aliases may nest."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(expanded(part, known) for part in parts)
    return known[id(value)]


def described(fault: yaml.YAMLError) -> str:
    """The line and the problem, without names of anchors and tags: mistyped secrets."""
    mark = getattr(fault, "problem_mark", None)
    problem = str(getattr(fault, "problem", fault))
    if "alias" in problem or "tag" in problem or "anchor" in problem:
        problem = "an alias, anchor or tag that is not known; put the value into quotes"
    return f"line {mark.line + 1}: {problem}" if mark else problem


def fill_in(
    value: object, environment: Mapping[str, str], path: str, faults: list[Fault]
) -> object:
    if isinstance(value, dict):
        return {k: fill_in(v, environment, join(path, k), faults) for k, v in value.items()}
    if isinstance(value, list):
        return [fill_in(v, environment, f"{path}[{i}]", faults) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    if "${" in REFERENCE.sub("", value):
        faults.append(Fault(path, "expected ${NAME}, of letters, digits and underscores"))
        return REPORTED
    missing = sorted({name for name in REFERENCE.findall(value) if name not in environment})
    faults.extend(Fault(path, f"the environment variable {name} is not set") for name in missing)
    if missing:
        return REPORTED
    return FromEnvironment(REFERENCE.sub(lambda found: environment[found[1]], value))


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def decode(value: object, type_: type[T], path: str, faults: list[Fault]) -> T | None:
    """Build a `type_` from plain values; None, with a new fault, if it cannot be."""
    before = len(faults)
    built = build(value, type_, path, faults)
    return None if breaks(faults, before) or value is REPORTED else cast("T", built)


def breaks(faults: list[Fault], since: int) -> bool:
    """Whether a fault since then leaves nothing to go on with."""
    return not all(fault.leaves_rest for fault in faults[since:])


def build(value: object, type_: Any, path: str, faults: list[Fault]) -> object:  # noqa: ANN401
    """Descend into Structs, lists and mappings; convert everything else at once."""
    bare = arm_for(value, plain(type_))
    is_null = value is None and bare is not type_ and NoneType in get_args(type_)
    if is_null or value is REPORTED:
        return None
    if isinstance(bare, type) and hasattr(bare, "parse"):
        return parse(value, bare, path, faults)
    if isinstance(bare, type) and issubclass(bare, Struct) and isinstance(value, dict):
        return build_struct(value, bare, path, faults)
    if get_origin(bare) is tuple and isinstance(value, list):
        item = get_args(bare)[0]
        return tuple(build(v, item, f"{path}[{i}]", faults) for i, v in enumerate(value))
    if get_origin(bare) is dict and isinstance(value, dict):
        item = get_args(bare)[1]
        return {str(k): build(v, item, join(path, k), faults) for k, v in value.items()}
    return convert(value, type_, path, faults)


def plain(type_: Any) -> Any:  # noqa: ANN401
    """The one type inside `Annotated[T, …]` or `T | None`; anything else as it is."""
    if get_origin(type_) is Annotated:
        return plain(get_args(type_)[0])
    if get_origin(type_) in {Union, UnionType}:
        rest = [part for part in get_args(type_) if part is not NoneType]
        return plain(rest[0]) if len(rest) == 1 else type_
    return type_


def arm_for(value: object, type_: Any) -> Any:  # noqa: ANN401
    """The list or the mapping of a union, by the value; anything else as it is."""
    kinds: dict[type, Any] = {list: tuple, dict: dict}
    kind = kinds.get(type(value)) if get_origin(type_) in {Union, UnionType} else object
    return next((arm for arm in get_args(type_) if kind and get_origin(arm) is kind), type_)


@cache
def shape(type_: type[Struct]) -> tuple[dict[str, FieldInfo], dict[str, Any]]:
    """Fields and their types, cached: thousands of tenants have one."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    return fields, get_type_hints(type_, include_extras=True)


def build_struct(
    value: dict[Any, Any], type_: type[Struct], path: str, faults: list[Fault]
) -> object:
    """Unknown and missing keys are faults."""
    fields, hints = shape(type_)
    before = len(faults)
    unknown = (join(path, k) for k in value if k not in fields)
    faults.extend(Fault(place, "unknown key", leaves_rest=True) for place in unknown)
    faults.extend(
        Fault(join(path, name), "is missing")
        for name, field in fields.items()
        if field.required and name not in value
    )
    built = {
        fields[k].name: build(v, hints[fields[k].name], join(path, k), faults)
        for k, v in value.items()
        if k in fields
    }
    return None if breaks(faults, before) else type_(**built)


def parse(value: object, type_: Any, path: str, faults: list[Fault]) -> object:  # noqa: ANN401
    """A type that reads itself."""
    try:
        return type_.parse(value)
    except ValueError as fault:
        faults.append(Fault(path, str(fault)))
        return None


def convert(value: object, type_: Any, path: str, faults: list[Fault]) -> object:  # noqa: ANN401
    """A leaf, or a tagged union. Text from the environment may stand for a number."""
    try:
        return msgspec.convert(value, type_, strict=not isinstance(value, FromEnvironment))
    except msgspec.ValidationError as fault:
        message, _, place = str(fault).partition(" - at `$")
        faults.append(Fault(path + place.rstrip("`"), message[0].lower() + message[1:]))
        return None
